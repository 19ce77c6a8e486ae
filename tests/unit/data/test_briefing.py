"""What a teacher alone is told: its member and its own prompt, beside the student's very tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.data.base import Dataset
from distill.data.briefing import Needs, told, untold
from distill.data.build import build
from distill.errors import UserError
from distill.models import tokenizers
from distill.models.locate import locate
from distill.types import Sample
from tests import tiny

HINT = Needs(prompt="{prompt} (Hint: {answer})")
TURNS = [
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "one"},
    {"role": "user", "content": "second"},
    {"role": "assistant", "content": "two"},
]


@pytest.fixture
def load(tmp_path: Path, data: Any, byte_tokenizer: Any) -> Callable[..., Dataset]:
    """The training rows of a JSONL file, for a tokenizer of bytes."""

    def run(rows: list[dict[str, Any]], needs: Needs, max_positions: int | None = 200, **keys: Any) -> Dataset:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = data(source="text", path=str(path), **keys)
        return build(config, byte_tokenizer("chatml"), seed=0, max_positions=max_positions, needs=needs)[0]

    return run


def read(sample: Sample, tokenizer: Any) -> tuple[str, str]:
    """What student and teacher read in all, and whether the teacher's ends with the student's own ids."""
    kept = sample.input_ids[sample.briefing.replaces :]
    return tokenizer.decode(sample.input_ids), tokenizer.decode(sample.briefing.prompt_ids + kept)


def test_a_template_takes_the_place_of_the_prompt(load: Any, byte_tokenizer: Any) -> None:
    rows = [{"prompt": "2+2?", "completion": " four", "answer": 4, "hint": "even"}] * 3
    sample = load(rows, Needs(prompt="{hint}, {answer}: {prompt}"))[0]
    student, teacher = read(sample, byte_tokenizer())
    assert (student, teacher) == ("2+2? four<|im_end|>", "even, 4: 2+2? four<|im_end|>")
    assert sample.briefing.replaces == len(sample.prompt_ids)
    assert told(sample).prompt_ids == sample.briefing.prompt_ids
    assert untold(sample).briefing.prompt_ids == ()
    assert untold(sample).prompt_ids == sample.prompt_ids


def test_without_needs_nothing_is_told(load: Any) -> None:
    sample = load([{"prompt": "a", "completion": "b"}] * 3, Needs())[0]
    assert sample.briefing.prompt_ids == ()
    assert sample.briefing.member is None
    assert told(sample) is sample


def test_in_a_conversation_it_takes_the_place_of_the_turn_before_the_first_answer(
    load: Any, byte_tokenizer: Any
) -> None:
    """What follows, later turns included, are the student's ids: so are the targets of every turn."""
    rows = [{"messages": TURNS, "answer": "two"}] * 3
    sample = load(rows, HINT, system_prompt="Be brief.")[0]
    student, teacher = read(sample, byte_tokenizer())
    assert "first<|im_end|>" in student
    assert teacher == student.replace("first", "first (Hint: two)")
    assert not any(sample.target_mask[: sample.briefing.replaces])
    assert sample.target_mask[sample.briefing.replaces]
    # A rollout goes on after the second question; the teacher has read the same conversation, with the hint.
    tokenizer = byte_tokenizer()
    expected = tokenizer.decode(sample.prompt_ids).replace("first", "first (Hint: two)")
    assert tokenizer.decode(told(sample).prompt_ids) == expected


def test_a_conversation_that_waits_for_an_answer(load: Any, byte_tokenizer: Any) -> None:
    sample = load([{"messages": TURNS[:3], "answer": "two"}] * 3, HINT)[0]
    tokenizer = byte_tokenizer()
    expected = tokenizer.decode(sample.prompt_ids).replace("first", "first (Hint: two)")
    assert tokenizer.decode(sample.briefing.prompt_ids) == expected
    assert sample.briefing.replaces == len(sample.prompt_ids)


def test_a_plain_prompt_goes_into_the_users_turn(load: Any, byte_tokenizer: Any) -> None:
    sample = load([{"prompt": "q", "completion": "r", "answer": 1}] * 3, HINT, chat_template=True)[0]
    student, teacher = read(sample, byte_tokenizer())
    assert teacher == student.replace("user\nq<", "user\nq (Hint: 1)<") != student


def test_rows_name_their_teacher(load: Any) -> None:
    rows = [{"prompt": "q", "completion": "r", "domain": name} for name in ("maths", "code", "maths", "maths")]
    train = load(rows, Needs(by="domain", members=("maths", "code")))
    assert [train[index].briefing.member for index in range(3)] == ["maths", "code", "maths"]
    assert train[0].briefing.prompt_ids == ()


@pytest.mark.parametrize(
    ("row", "needs", "expected"),
    [
        (
            {"domain": "law"},
            Needs(by="domain", members=("maths", "code")),
            r"maths, code, .*line 2: `domain` ",
        ),
        ({}, Needs(by="domain", members=("maths", "code")), r"line 2: no `domain`"),
        ({"domain": None}, Needs(by="domain", members=("maths", "code")), r"line 2: no `domain`"),
        ({"answer": None}, HINT, r"line 2: no text or number in `answer`"),
        ({"answer": "x" * 300}, HINT, r"line 2: \d+ tokens of teacher.prompt and \d+ after them"),
    ],
)
def test_a_row_that_does_not_do_is_named(row: dict[str, Any], needs: Needs, expected: str, load: Any) -> None:
    good = {"prompt": "q", "completion": "r", "domain": "maths", "answer": "1"}
    bad = {**{key: value for key, value in good.items() if key != "domain"}, **row}
    limited = Needs(needs.by, needs.members, needs.prompt, max_positions=200, max_new_tokens=8)
    with pytest.raises(UserError, match=expected) as error:
        load([good, bad, good], limited)
    assert "\n" not in str(error.value)
    assert "rows.jsonl" in str(error.value)


def test_what_a_rollout_may_add_counts(load: Any) -> None:
    rows = [{"prompt": "q", "completion": "r", "answer": "1"}] * 3
    assert load(rows, Needs(prompt=HINT.prompt, max_positions=32, max_new_tokens=8), max_positions=None)
    with pytest.raises(UserError, match=r"rollout.max_new_tokens counts"):
        load(rows, Needs(prompt=HINT.prompt, max_positions=32, max_new_tokens=30), max_positions=None)


def test_arithmetic_has_its_operands_and_answer(data: Any) -> None:
    tokenizer = tokenizers.load(str(locate(tiny.TOKENIZER, key="student")), key="student")
    needs = Needs(prompt="{answer}?{b}{operator}{a} {prompt}")
    train, held_out = build(data(digits=2), tokenizer, seed=0, max_positions=64, needs=needs)
    for dataset in (train, held_out):
        sample = dataset[3]
        prompt = tokenizer.decode(sample.prompt_ids)
        a, b = prompt.rstrip("=").split("+")
        assert tokenizer.decode(sample.briefing.prompt_ids) == f"{int(a) + int(b)}?{b}+{a} {prompt}"
    with pytest.raises(UserError, match=r"`teacher.prompt` must be text of characters that the tokenizer knows"):
        build(data(), tokenizer, seed=0, max_positions=64, needs=HINT)
    with pytest.raises(UserError, match=r"no text or number in `hint`"):
        build(data(), tokenizer, seed=0, max_positions=64, needs=Needs(prompt="{hint}"))
