"""A sample written down as a row of a file has the same tokens when ``data=text`` reads it."""

import json
from pathlib import Path
from typing import Any

import pytest

from distill.data import build

TURNS = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "Bye."},
]
ROWS = [
    {"prompt": "Say it. ", "completion": " it", "answer": "it"},
    {"prompt": "Say two.", "completion": "two", "answer": 2},
    {"messages": TURNS, "answer": "bye."},
    {"messages": [{"role": "system", "content": "Shout."}, *TURNS[:2]], "answer": "x"},
    {"messages": TURNS[:3], "answer": "x"},
]
CHAT = {"chat_template": True, "system_prompt": "Be brief."}


@pytest.mark.parametrize("template", ["chatml", "llama3"])
@pytest.mark.parametrize("settings", [{}, CHAT])
@pytest.mark.parametrize(
    "source",
    [{"digits": 2, "limit": 5}, {"source": "text", "limit": 5}, {"source": "reasoning_gym", "task": "gcd", "size": 5}],
)
def test_a_row_is_read_as_the_sample_it_is(
    source: dict[str, Any], settings: dict[str, Any], template: str, tmp_path: Path, byte_tokenizer: Any, data: Any
) -> None:
    if source.get("source") == "reasoning_gym":
        pytest.importorskip("reasoning_gym")
    tokenizer = byte_tokenizer(template, bos=template == "llama3")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    files = {"path": str(path), "eval_path": str(path)}
    asked = data(**source, **settings, **(files if source.get("source") == "text" else {}))
    dataset, _ = build(asked, tokenizer, seed=0, max_positions=None)
    again = tmp_path / "again.jsonl"
    again.write_text("".join(json.dumps(dataset.row(index)) + "\n" for index in range(len(dataset))))
    plain = data(source="text", path=str(again), eval_path=str(again))
    read, _ = build(plain, tokenizer, seed=0, max_positions=None)
    assert len(read) == len(dataset) == 5
    for ours, theirs in zip(dataset, read, strict=True):
        assert (ours.prompt_ids, ours.input_ids, ours.target_mask) == (
            theirs.prompt_ids,
            theirs.input_ids,
            theirs.target_mask,
        )
    assert read.has_verifier
    with pytest.raises(IndexError):
        dataset.row(5)


@pytest.mark.parametrize(
    ("form", "operator", "prompt", "answer"),
    [
        ("{a}{operator}{b}=", "+", "12+30=", 42),
        ("{a}{operator}{b}=", "+", "12-30=", None),
        ("{a}{operator}{b}=", "+", "12+30= ", None),
        ("{a}{operator}{b}=", "*", "12*30=", 360),
        ("{a}{operator}{b}=", "+", f"{'9' * 5000}+1=", None),
        ("({a}) minus {b}? ({a} - {b})", "-", "(7) minus 9? (7 - 9)", -2),
        ("({a}) minus {b}? ({a} - {b})", "-", "(7) minus 9? (7 - 8)", None),
    ],
)
def test_sums_of_others_are_solved_if_they_are_in_form(
    form: str, operator: str, prompt: str, answer: int | None, byte_tokenizer: Any, data: Any
) -> None:
    train, _ = build(data(prompt=form, operator=operator), byte_tokenizer(), seed=0, max_positions=None)
    assert train.solve(prompt) == answer
    sample = train[7]
    assert train.solve(train.row(7)["prompt"]) == sample.answer
