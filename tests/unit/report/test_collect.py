"""Reading run directories in any state."""

import json
import os
from pathlib import Path

import pytest

from distill.errors import UserError
from distill.report.collect import FILES, collect, read


def test_a_finished_run(run_dir: Path) -> None:
    run = collect(run_dir)
    assert run.name == "opd"
    assert run.notes == ()
    assert (run.last_step, run.planned_steps, run.finished, run.seconds) == (4, 4, True, 140.0)
    assert run.series("eval/accuracy") == [(0, 0.031), (4, 0.882)]
    assert (run.first("loss"), run.last("loss"), run.last("nothing")) == (2.0, 0.5, None)
    assert run.latest("sparsity/group/") == {"mlp": 0.5, "attention": 0.5}
    assert run.setting("objective", "divergence") == "reverse_kl"
    assert run.setting("objective", "divergence", "deeper") is None


def test_a_torn_last_line_is_left_out_and_named(run_dir: Path) -> None:
    text = (run_dir / "metrics.jsonl").read_text()
    (run_dir / "metrics.jsonl").write_text(text[:-20])
    run = collect(run_dir)
    assert run.last_step == 3
    assert not run.finished
    assert run.notes == (
        "metrics.jsonl: line 5 (the last: the run was cut off while writing) is not readable and left out.",
    )


def test_a_broken_line_in_the_middle_is_named(run_dir: Path) -> None:
    lines = (run_dir / "samples.jsonl").read_text().splitlines()
    (run_dir / "samples.jsonl").write_bytes("\n".join([lines[0], "[1]", lines[2]]).encode() + b"\n\xff\xfe\n")
    run = collect(run_dir)
    assert len(run.samples) == 2
    assert [note.split(" is ")[0] for note in run.notes] == [
        "samples.jsonl: line 2",
        "samples.jsonl: line 4 (the last: the run was cut off while writing)",
    ]


def test_signs_that_only_look_like_the_end_of_a_line_are_text(run_dir: Path) -> None:
    line = json.dumps({"step": 4, "completion": "a\u2028b\u0085c"}, ensure_ascii=False)
    (run_dir / "samples.jsonl").write_text(f"{line}\n{line}\n", encoding="utf-8")
    run = collect(run_dir)
    assert [sample["completion"] for sample in run.samples] == ["a\u2028b\u0085c"] * 2
    assert run.notes == ()


@pytest.mark.parametrize("name", FILES)
def test_any_file_may_be_missing(run_dir: Path, name: str) -> None:
    (run_dir / name).unlink()
    assert collect(run_dir).notes == (f"{name} is missing.",)


@pytest.mark.parametrize("text", ["a: [1", "just words", ""])
@pytest.mark.parametrize("name", ["config.yaml", "environment.json"])
def test_unreadable_settings_are_named(run_dir: Path, name: str, text: str) -> None:
    (run_dir / name).write_text(text)
    run = collect(run_dir)
    assert run.notes == (f"{name} is not readable.",)
    assert run.last_step == 4


def test_steps_are_sorted_and_the_later_record_counts(run_dir: Path) -> None:
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 0.25}\n{"step": 1, "loss": NaN}\n{"step": null}\n{"loss": 1}\n')
    assert collect(run_dir).series("loss") == [(2, 0.25), (3, pytest.approx(2 / 3)), (4, 0.5)]


@pytest.mark.skipif(
    os.geteuid() == 0, reason="root may read everything: another user runs `pytest tests/unit/report/test_collect.py`"
)
def test_a_file_that_may_not_be_read_is_refused(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").chmod(0)
    with pytest.raises(
        UserError, match=r"`runs` must be files that can be read .Permission denied., but is '.*metrics"
    ):
        collect(run_dir)


def test_a_file_that_fails_while_it_is_read_is_refused(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, *_: object, **__: object) -> str:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "read_text", broken)
    with pytest.raises(
        UserError, match=r"`runs` must be files that can be read .Input/output error., but is '.*config"
    ):
        collect(run_dir)


def test_a_folder_without_files_can_be_read_as_a_record_of_nothing(tmp_path: Path) -> None:
    run = read(tmp_path)
    assert (run.metrics, run.config, run.written, run.job, run.last_step) == ((), {}, None, {}, 0)
    assert len(run.notes) == len(FILES)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`runs` must be a run directory"):
        collect(tmp_path)
