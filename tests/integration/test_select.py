"""``distill select`` as a whole command: what is kept, kills, ranks, and what is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import distill
from distill import cli, parts
from distill.commands import select
from distill.config.schema_select import SelectConfig
from distill.errors import UserError
from tests.integration.test_bad_input import rewrite, swap_two_digits

ASSETS = Path(distill.__file__).parent / "assets"
FILES = (select.SCORES, select.ROWS, select.HELD_OUT, parts.MANIFEST)


def settings(out: Path, data: Path, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "data": {"source": "text", "path": str(data), "eval_size": 4},
        "teacher": {"kind": "frozen", "path": str(ASSETS / "teacher")},
        "reference": {"path": str(ASSETS / "student")},
        "part_rows": 7,
        "batch_size": 3,
        "accelerator": "cpu",
        "out": str(out),
    }
    return SelectConfig(**(found | changes)).model_dump()


def make(out: Path, data: Path, **changes: Any) -> Path:
    assert select.run(settings(out, data, **changes), out) == 0
    return out


def contents(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in FILES]


def rows(out: Path, name: str = select.ROWS) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty sums that the teacher knows, between twenty wrong ones; four more are held out."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    sums = [{"prompt": f"{11 * i}+{7 * i}=", "completion": str(18 * i + 500 * (i % 2))} for i in range(10, 54)]
    path.write_text("".join(json.dumps(row) + "\n" for row in sums))
    return path


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("select") / "whole", data)


def test_half_of_the_rows_is_kept_in_their_order(whole: Path, data: Path) -> None:
    found, scores = rows(whole), rows(whole, select.SCORES)
    assert [row["id"] for row in scores] == list(range(40))
    best = sorted(sorted(scores, key=lambda row: -row["score"])[:20], key=lambda row: row["id"])
    assert [(row["id"], row["score"]) for row in found] == [(row["id"], row["score"]) for row in best]
    assert [row["id"] for row in scores if row["kept"]] == [row["id"] for row in found]
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    assert [{key: row[key] for key in ("prompt", "completion")} for row in found] == [lines[row["id"]] for row in found]
    assert sum(row["id"] % 2 == 0 for row in found) >= 18, "the teacher knows right sums better, and wrong ones not"
    assert rows(whole, select.HELD_OUT) == lines[40:]
    told = json.loads((whole / parts.MANIFEST).read_text())
    assert (told["scored"], told["rows"]) == (40, 20)
    assert told["lowest_score_kept"] == min(row["score"] for row in found)


def test_another_share_needs_no_new_scores(whole: Path, data: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (out / parts.FOLDER).iterdir()}
    make(out, data, keep=0.1)
    assert {path.name: path.stat().st_mtime_ns for path in (out / parts.FOLDER).iterdir()} == before
    assert len(rows(out)) == 4


WRITES = 11
"""Settings, six parts, three files and the manifest."""


@pytest.mark.parametrize("number", range(0, WRITES, 2))
def test_a_kill_costs_nothing(number: int, whole: Path, data: Path, tmp_path: Path) -> None:
    def killed() -> None:
        sync, left = os.fsync, iter(range(WRITES))

        def fatal(file: int) -> None:
            sync(file)
            if next(left) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = fatal
        make(tmp_path / "out", data)

    assert child(killed) == -signal.SIGKILL
    assert contents(make(tmp_path / "out", data)) == contents(whole)
    assert not list((tmp_path / "out").rglob(".*")), "no draft is left"


def child(work: Callable[[], object]) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode


def test_two_processes_select_the_rows_of_one(whole: Path, data: Path, tmp_path: Path) -> None:
    def rank(number: int) -> None:
        os.environ.update(RANK=str(number), WORLD_SIZE="2")
        make(tmp_path / "out", data)

    processes = [multiprocessing.get_context("fork").Process(target=rank, args=(number,)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert contents(tmp_path / "out") == contents(whole)


def test_other_settings_are_refused(whole: Path, data: Path) -> None:
    with pytest.raises(UserError, match=r"`batch_size` must be 3, with which .* was begun"):
        make(whole, data, batch_size=4)


@pytest.mark.parametrize(("keep", "warned"), [(0.5, False), (1.0, True)])
def test_rows_that_the_teacher_likes_no_better_are_warned_of(
    keep: float, warned: bool, whole: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With all of them there are as many wrong sums as right ones."""
    out = make(shutil.copytree(whole, tmp_path / "out"), data, keep=keep)
    mean = sum(row["score"] for row in rows(out)) / len(rows(out))
    assert (mean <= 0) == warned
    assert json.loads((out / parts.MANIFEST).read_text())["mean_score_kept"] == pytest.approx(mean)
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [f"{mean:.4g} nats per token" in line and "knows them no better" in line for line in lines] == [
        True
    ] * warned


def test_changed_data_are_refused(data: Path, tmp_path: Path) -> None:
    path = shutil.copy(data, tmp_path / "rows.jsonl")
    out = make(tmp_path / "out", path)
    path.write_text(path.read_text().replace("180", "181", 1))
    with pytest.raises(UserError, match="this one was begun with other training data"):
        make(out, path)


def test_another_tokenizer_is_refused(data: Path, tmp_path: Path) -> None:
    other = shutil.copytree(ASSETS / "student", tmp_path / "other")
    rewrite(other / "tokenizer.json", swap_two_digits)
    with pytest.raises(UserError, match=r"a model with the reference model's tokenizer \(id 3 is '1' for the ref"):
        make(tmp_path / "out", data, reference={"path": str(other)})


def test_the_teacher_by_another_name_is_refused(data: Path, tmp_path: Path) -> None:
    same = shutil.copytree(ASSETS / "teacher", tmp_path / "same")
    with pytest.raises(UserError, match=r"`reference.path` must be a model of other weights.*: all scores would be 0"):
        make(tmp_path / "out", data, reference={"path": str(same)})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["reference.path=package://distill/assets/teacher"], "reference.path"),
        (["reference.path=null"], "reference.path"),
        (["keep=0"], "keep"),
        (["teacher=none"], "teacher.kind"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_loads(
    words: list[str], key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["select", f"out={tmp_path}/out", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: `{key}` must be")
    assert len(error.splitlines()) == 1
