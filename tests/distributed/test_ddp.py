"""Two gloo processes end at the weights of one process on the full batch, whatever the micro-batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill.commands.train import run
from tests import tiny

WORKER = Path(__file__).with_name("worker.py")
ROOT = Path(__file__).parents[2]
# Row counts that do not divide evenly: 6 rows a rank in micro-batches of 4 and 2, against 12 rows at once.
CASES = [(recipe, optimizer) for recipe in tiny.RECIPES for optimizer in ("sgd", "adamw")]
LEARNING_RATE = {"sgd": 0.3, "adamw": 1e-3}


def settings(recipe: str, optimizer: str) -> dict[str, object]:
    return {
        "recipe": recipe,
        "optimizer__name": optimizer,
        "optimizer__lr": LEARNING_RATE[optimizer],
        "callbacks__checkpoint": None,
    }


def torchrun(runs: list[tuple[dict[str, object], str]], folder: Path) -> None:
    specification = folder / "runs.json"
    specification.write_text(json.dumps(runs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*command, str(WORKER), str(specification)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    ddp = {"trainer__strategy": "ddp", "trainer__micro_batch_size": 4}
    runs = [(tiny.config(**settings(*case), **ddp), str(folder / "-".join(case))) for case in CASES]
    torchrun(runs, folder)
    return folder


@pytest.mark.parametrize(("recipe", "optimizer"), CASES)
def test_two_ranks_equal_one_process(recipe: str, optimizer: str, two_ranks: Path, tmp_path: Path) -> None:
    assert run(tiny.config(**settings(recipe, optimizer)), tmp_path) == 0
    together = load_file(two_ranks / f"{recipe}-{optimizer}" / "model" / "model.safetensors")
    alone = load_file(tmp_path / "model" / "model.safetensors")
    start = load_file(tmp_path / "source" / "model.safetensors")
    assert set(together) == set(alone)
    moved = max(float((alone[name] - start[name]).abs().max()) for name in alone)
    assert moved > 1e-3
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=0, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize(("recipe", "optimizer"), CASES)
def test_two_ranks_log_what_one_process_logs(recipe: str, optimizer: str, two_ranks: Path, tmp_path: Path) -> None:
    run(tiny.config(**settings(recipe, optimizer)), tmp_path)
    together, alone = tiny.metrics(two_ranks / f"{recipe}-{optimizer}"), tiny.metrics(tmp_path)
    assert [record["step"] for record in together] == [record["step"] for record in alone] == list(range(7))
    for ours, theirs in zip(together, alone, strict=True):
        assert set(ours) == set(theirs)
        for key in set(ours) - {"time", "tokens_per_second"}:
            if not key.startswith("time/"):
                assert ours[key] == pytest.approx(theirs[key], abs=2e-5, rel=1e-4), key
