"""``distill label`` as a whole command: kills, ranks, what is dropped and refused, and training on what it made."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from distill import cli, models, parts
from distill.commands import label, train
from distill.config.schema_label import LabelConfig
from distill.errors import RunError, UserError
from distill.labelling import given, synthetic
from distill.rollouts.decode import Completion
from tests import tiny
from tests.unit.data.conftest import build_byte_tokenizer

TEACHER = {"kind": "frozen", "path": "package://distill/assets/teacher"}
FILES = (label.ROWS, label.HELD_OUT, parts.MANIFEST)
Generate = Callable[..., list[Completion]]


def settings(out: Path, **sections: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "data": {"digits": 2, "limit": 30, "eval_size": 8},
        "teacher": TEACHER,
        "sampling": {"max_new_tokens": 8, "batch_size": 8, "temperature": 1.5},
        "accelerator": "cpu",
        "out": str(out),
    }
    for name, keys in sections.items():
        found[name] = found.get(name, {}) | keys if isinstance(keys, dict) else keys
    return LabelConfig(**found).model_dump()


def make(out: Path, **sections: Any) -> Path:
    assert label.run(settings(out, **sections), out) == 0
    return out


def contents(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in FILES]


def rows(out: Path, name: str = label.ROWS) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def manifest(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / parts.MANIFEST).read_text())
    return found


def child(work: Callable[[], object]) -> int | None:
    """Exit code of a process that does the work."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("label") / "whole")


def test_the_teacher_answers_the_prompts_of_the_data(whole: Path) -> None:
    found, told = rows(whole), manifest(whole)
    assert told["drawn"] == 30
    assert 0 < len(found) < 30, "at this temperature the teacher errs now and then"
    assert all(row["completion"] == row["answer"] == str(eval(row["prompt"][:-1])) for row in found)
    assert told["rows"] == told["verified"] == told["exact"] == len(found)
    assert told["rows"] + sum(told["dropped"].values()) == 30
    assert told["verifier"] == "arithmetic"
    assert len(rows(whole, label.HELD_OUT)) == 8
    assert told["files"][label.ROWS] == hashlib.sha256((whole / label.ROWS).read_bytes()).hexdigest()


def test_unverified_rows_are_kept_on_demand(whole: Path, tmp_path: Path) -> None:
    told = manifest(make(tmp_path / "out", label={"verify": False}))
    assert told["rows"] > manifest(whole)["rows"]
    assert (told["verified"], told["verifier"]) == (0, "none: label.verify is false")


WRITES = 8
"""Settings, four parts, two files and the manifest."""


def killed(out: Path, write: int, before: bool) -> None:
    """Makes the file until a write, and dies before or after its result appears."""
    replace, left = Path.replace, iter(range(WRITES))

    def fatal(draft: Path, target: Path) -> Path:
        last = next(left) == write
        if not (last and before):
            replace(draft, target)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return target

    Path.replace = fatal  # type: ignore[method-assign, assignment]
    make(out)


@pytest.mark.parametrize("before", [True, False], ids=["before it is there", "after it is there"])
@pytest.mark.parametrize("write", range(WRITES))
def test_a_kill_at_any_write_costs_nothing(write: int, before: bool, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert child(partial(killed, out, write, before)) == -signal.SIGKILL
    assert (out / parts.MANIFEST).exists() == (write == WRITES - 1 and not before)
    kept = {path: path.stat().st_mtime_ns for path in (out / parts.FOLDER).glob("*.jsonl")}
    make(out)
    assert contents(out) == contents(whole)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "what was there is not made again"
    assert not list(out.rglob(".*")), "no draft is left"


def test_two_processes_make_the_rows_of_one(whole: Path, tmp_path: Path) -> None:
    def rank(number: int) -> None:
        os.environ.update(RANK=str(number), WORLD_SIZE="2")
        make(tmp_path / "out")

    processes = [multiprocessing.get_context("fork").Process(target=rank, args=(number,)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert contents(tmp_path / "out") == contents(whole)


def test_several_answers_to_a_prompt_differ_or_are_dropped(tmp_path: Path) -> None:
    out = make(tmp_path / "out", label={"samples_per_prompt": 3, "verify": False})
    found = rows(out)
    assert len({(row["prompt"], row["completion"]) for row in found}) == len(found)
    assert manifest(out)["drawn"] == 90
    assert manifest(out)["dropped"]["duplicate"] > 0
    assert max(row["copy"] for row in found) > 0


def test_a_student_is_trained_on_the_rows(whole: Path, tmp_path: Path) -> None:
    data = {"source": "text", "path": str(whole / label.ROWS), "eval_path": str(whole / label.HELD_OUT)}
    config = tiny.config("sft", trainer__max_steps=2, data__batch_size=4, callbacks__checkpoint=None)
    config["data"] |= data
    assert train.run(config, tmp_path / "run") == 0
    accuracy = [record["eval/accuracy"] for record in tiny.metrics(tmp_path / "run") if "eval/accuracy" in record]
    assert accuracy, "the rows have what the verifier needs"


def test_conversations_are_read_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a system prompt, through the chat template, and with tokens that stop a turn."""
    tokenizer, path = build_byte_tokenizer("chatml"), tmp_path / "tokenizer"
    tokenizer.save_pretrained(path)
    teacher = {"path": None, "config": {**tiny.llama(8), "max_position_embeddings": 200}, "tokenizer": str(path)}

    def writing(lm: Any, prompts: Sequence[Sequence[int]], *others: Any) -> list[Completion]:
        ids = [(*tokenizer(f"Yes {i}.")["input_ids"], tokenizer.eos_token_id) for i, _ in enumerate(prompts)]
        return [Completion(tuple(found), torch.zeros(len(found)), True) for found in ids]

    monkeypatch.setattr(given, "generate", writing)
    data = {"chat_template": True, "system_prompt": "Be brief.", "limit": 5}
    out = make(tmp_path / "out", teacher=teacher, data=data, label={"verify": False})
    turns = [message["role"] for message in rows(out)[0]["messages"]]
    assert turns == ["system", "user", "assistant"]
    assert manifest(out)["exact"] == manifest(out)["rows"] == 5


def test_a_mixture_is_answered_part_by_part(tmp_path: Path) -> None:
    sums = {"digits": 1, "limit": 6}
    parts_of = {"plus": {**sums, "operator": "+"}, "minus": {**sums, "operator": "-"}}
    data = {"source": "mixture", "parts": parts_of, "limit": None, "digits": 3}
    out = make(tmp_path / "out", data=data, label={"verify": False})
    found = rows(out)
    assert len({row["id"] for row in found}) == len(found) > 6
    assert {row["id"] % 2 for row in found if "+" in row["prompt"]} == {0}
    assert {row["id"] % 2 for row in found if "-" in row["prompt"]} == {1}


def test_what_differs_on_resuming_is_named(whole: Path) -> None:
    for section, keys, key in (
        ("sampling", {"temperature": 1.25}, "sampling.temperature"),
        ("data", {"limit": 29}, "data.limit"),
        ("seed", 1, "seed"),
    ):
        with pytest.raises(UserError, match=f"`{key}` must be .*, with which .* was begun"):
            make(whole, **{section: keys})


def test_another_teacher_of_the_same_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sections: dict[str, Any] = {"data": {"limit": 2}, "label": {"verify": False}}
    out = make(tmp_path / "out", **sections)
    build = models.build

    def moved(*args: Any, **keywords: Any) -> models.CausalLM:
        lm = build(*args, **keywords)
        next(lm.model.parameters()).data.mul_(2)
        return lm

    monkeypatch.setattr(models, "build", moved)
    with pytest.raises(UserError, match="`out` must be another folder: this one was begun with other teacher weights"):
        make(out, **sections)


def silent(lm: Any, prompts: Sequence[Sequence[int]], *others: Any) -> list[Completion]:
    return [Completion((min(lm.eos_ids),), torch.zeros(1), True) for _ in prompts]


def endless(lm: Any, prompts: Sequence[Sequence[int]], *others: Any) -> list[Completion]:
    return [Completion((5, 5), torch.zeros(2), False) for _ in prompts]


SYNTHETIC = {"prompts": "synthetic", "rows": 12, "example": "{prompt} {completion} "}


@pytest.mark.parametrize(
    ("module", "writes", "options", "message"),
    [
        (given, silent, {}, r"none of 30 rows can be kept \(dropped: 30 empty\)"),
        (given, endless, {}, r"none of 30 rows can be kept \(dropped: 30 unfinished\)"),
        (synthetic, silent, SYNTHETIC, r"none of 48 rows can be kept \(dropped: 48 empty\)"),
        (synthetic, endless, SYNTHETIC, r"none of 48 rows can be kept \(dropped: 48 unfinished\)"),
    ],
)
def test_a_teacher_that_writes_nothing_ends_in_one_line(
    module: Any, writes: Generate, options: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "generate", writes)
    with pytest.raises(RunError, match=message):
        make(tmp_path / "out", label=options)
    assert not (tmp_path / "out" / parts.MANIFEST).exists()


def test_logits_that_are_not_finite_end_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = models.build

    def broken(*args: Any, **keywords: Any) -> models.CausalLM:
        lm = build(*args, **keywords)
        lm.model.get_output_embeddings().weight.data.fill_(math.nan)
        return lm

    monkeypatch.setattr(models, "build", broken)
    with pytest.raises(RunError, match="The teacher's logits are not finite"):
        make(tmp_path / "out")


def inventive(lm: Any, prompts: Sequence[Sequence[int]], sampling: Any, seeds: Sequence[int], *_: Any) -> Any:
    """A teacher that makes up sums of two numbers below 40: some twice, some wrong, some in no form at all."""
    found = []
    for seed in seeds:
        draw = random.Random(seed)
        a, b = draw.randrange(40), draw.randrange(40)
        text = f"{a}+{b}= {a + b + (draw.random() < 0.3)} "
        text = draw.choice([text, text, text, f"{text}1+1= 2 ", "===", f"{a}-{b}= 7 "])
        ids = (*lm.tokenizer(text)["input_ids"], lm.tokenizer.eos_token_id)
        found.append(Completion(ids, torch.zeros(len(ids)), True))
    return found


@pytest.fixture
def inventing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "generate", inventive)


@pytest.mark.usefixtures("inventing")
def test_new_rows_are_new_right_and_as_many_as_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"limit": 2000}
    out = make(tmp_path / "one", data=data, label=SYNTHETIC)
    found, told = rows(out), manifest(out)
    assert len(found) == told["rows"] == 12
    assert len({row["prompt"] for row in found}) == 12
    in_form = [row for row in found if "+" in row["prompt"]]
    assert told["verified"] == len(in_form) > 0
    assert all(row["completion"] == row["answer"] == str(eval(row["prompt"][:-1])) for row in in_form)
    assert all("answer" not in row for row in found if row not in in_form), "nobody knows these"
    assert {"wrong", "training", "unparsed"} <= set(told["dropped"])
    assert told["rows"] + sum(told["dropped"].values()) == told["drawn"] < 48
    assert all(len(set(row["examples"])) == 4 for row in found)

    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        make(tmp_path / "two", data=data, label=SYNTHETIC)
    assert contents(tmp_path / "two") == contents(out), "though rank 1 drew more than was needed"


@pytest.mark.usefixtures("inventing")
def test_too_few_rows_go_on_with_more_attempts(tmp_path: Path) -> None:
    out, few = tmp_path / "out", SYNTHETIC | {"rows": 16, "attempts": 1}
    with pytest.raises(RunError, match=r"\d+ of 16 rows after 16 draws \(dropped: .*\)\. With more label\.attempts"):
        make(out, label=few)
    before = parts.path(out, 0).stat().st_mtime_ns
    make(out, label=few | {"attempts": 6})
    assert parts.path(out, 0).stat().st_mtime_ns == before
    assert contents(out) == contents(make(tmp_path / "at once", label=few | {"attempts": 6}))


def test_examples_that_leave_no_room_are_dropped(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"none of 48 rows can be kept \(dropped: 48 too_long\)"):
        make(tmp_path / "out", data={"max_length": 12}, label=SYNTHETIC)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["label", *words]) == 2
    return capsys.readouterr().err.strip().removeprefix("error: ")


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["label.rows=5"], "label.rows"),
        (["label.examples=5"], "label.examples"),
        (["label.prompts=synthetic"], "label.rows"),
        (["label.prompts=synthetic", "label.rows=5", "label.samples_per_prompt=2"], "label.samples_per_prompt"),
        (["label.prompts=synthetic", "label.rows=5", "label.example='{completion} {prompt} '"], "label.example"),
        (["label.prompts=synthetic", "label.rows=5", "label.example='{prompt}{completion} '"], "label.example"),
        (["label.samples_per_prompt=2", "sampling.temperature=0"], "sampling.temperature"),
        (["teacher=none"], "teacher.kind"),
        (["teacher.placement=sharded"], "teacher.placement"),
        (["teacher.prompt='{prompt} {answer}'"], "teacher.prompt"),
        (["data=text"], "data.path"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_loads(
    words: list[str], key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refusal(capsys, f"out={tmp_path}/out", *words)
    assert error.startswith(f"`{key}` must be")
    assert len(error.splitlines()) == 1


def test_too_many_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`label.examples` must be at most 30, the number of training rows"):
        make(tmp_path / "out", label=SYNTHETIC | {"examples": 31})
