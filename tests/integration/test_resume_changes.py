"""Resuming with other settings than before, and what every logger shows of two attempts."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill import rundir
from distill.commands.train import run
from distill.errors import UserError
from tests import tiny


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model" / "model.safetensors")


@pytest.mark.parametrize(("recipe", "before", "after"), [("sft", None, 3), ("opd", 3, None), ("offline_kd", 5, 2)])
def test_other_micro_batches_do_not_move_the_steps(
    recipe: str, before: int | None, after: int | None, tmp_path: Path
) -> None:
    def settings(steps: int, micro: int | None = None, **changes: Any) -> dict[str, Any]:
        off = {"callbacks__evaluation": None, "callbacks__sparsity": None}
        return tiny.config(recipe, trainer__max_steps=steps, trainer__micro_batch_size=micro, **off, **changes)

    resumed = tmp_path / "resumed"
    assert run(settings(5), tmp_path / "straight") == 0
    assert run(settings(3, before), resumed) == 0
    assert run(settings(5, after, resume="auto"), resumed) == 0
    for name, tensor in weights(tmp_path / "straight").items():
        torch.testing.assert_close(weights(resumed)[name], tensor, rtol=0, atol=5e-5)
    losses, expected = ([r["loss"] for r in tiny.metrics(tmp_path / d) if "loss" in r] for d in ("resumed", "straight"))
    assert losses == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def two_attempts(tmp_path: Path) -> Path:
    """A run that was killed after step 4 and goes on from the checkpoint of step 2, with every logger."""

    def attempt(**changes: Any) -> dict[str, Any]:
        options = {"logger__csv": True, "logger__tensorboard": True, "logger__wandb": "offline"}
        return tiny.config("sft", callbacks__checkpoint__keep_last=9, **options, **changes)

    run_dir = tmp_path / "run"
    assert run(attempt(trainer__max_steps=4), run_dir) == 0
    shutil.rmtree(run_dir / "checkpoints" / "step-00000004")
    assert run(attempt(resume="auto"), run_dir) == 0
    return run_dir


def test_csv_and_tensorboard_have_neither_gap_nor_double(two_attempts: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    expected = {int(record["step"]): record["loss"] for record in tiny.metrics(two_attempts) if "loss" in record}
    assert list(expected) == [1, 2, 3, 4, 5, 6]
    with (two_attempts / "csv" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    assert [int(row["step"]) for row in rows] == list(expected)
    assert {int(row["step"]): float(row["loss"]) for row in rows} == pytest.approx(expected)
    events = EventAccumulator(str(two_attempts / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_every_attempt_has_the_same_wandb_run(two_attempts: Path) -> None:
    kept = rundir.wandb_id(two_attempts)
    names = [path.name for path in (two_attempts / "wandb").glob("offline-run-*")]
    assert names
    assert all(f"-{kept}" in name for name in names), names


def test_another_runs_records_are_not_cut_to_a_checkpoint(tmp_path: Path) -> None:
    for name in ("one", "other"):
        assert run(tiny.config("sft"), tmp_path / name) == 0
    before = (tmp_path / "other" / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match=r"`hydra\.run\.dir` must be a new folder"):
        run(tiny.config("sft", resume=str(tmp_path / "one"), trainer__max_steps=8), tmp_path / "other")
    assert (tmp_path / "other" / "metrics.jsonl").read_text() == before


def test_a_checkpoint_may_begin_a_new_run(tmp_path: Path) -> None:
    assert run(tiny.config("sft"), tmp_path / "one") == 0
    checkpoint = str(tmp_path / "one" / "checkpoints" / "step-00000004")
    assert run(tiny.config("sft", resume=checkpoint), tmp_path / "two") == 0
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [record["step"] for record in tiny.metrics(tmp_path / "two")] == [5, 6]
    last = [tiny.metrics(tmp_path / name)[-1] for name in ("one", "two")]
    kept = [{key: value for key, value in record.items() if "since_last" in key} for record in last]
    assert kept[0] == kept[1] != {}, "what step 3 was is copied from the other run"


def test_a_folder_with_checkpoints_is_not_begun_anew(tmp_path: Path) -> None:
    """Somebody moved a run without its metrics and forgot resume=auto."""
    assert run(tiny.config("sft"), tmp_path / "run") == 0
    shutil.copytree(tmp_path / "run" / "checkpoints", tmp_path / "moved" / "checkpoints")
    with pytest.raises(UserError, match="there are checkpoints in it"):
        run(tiny.config("sft"), tmp_path / "moved")
    assert len(list((tmp_path / "moved" / "checkpoints").glob("step-*"))) == 2
