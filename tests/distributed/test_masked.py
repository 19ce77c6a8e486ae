"""Training a subnetwork on two gloo processes: every other bit stays, whatever strategy, optimizer and precision.

All runs decay and clip, accumulate two micro-batches of different sizes per rank, and mask about a fifth of each tensor
(an optimizer with a compact state) or four fifths (one that puts bits back).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill.commands import export
from distill.commands.train import run
from tests import masks, tiny
from tests.distributed.parity import STRATEGIES
from tests.distributed.worker import launch

pytestmark = pytest.mark.timeout(600)
STEPS, SAVED, CLIP = 4, 2, 0.02
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer__name": "adamw", "optimizer__lr": 1e-2},
    "sgd": {"optimizer__name": "sgd", "optimizer__lr": 2.0, "optimizer__momentum": 0.9},
}
DENSITIES = {"few": 0.2, "most": 0.8}
FP32 = [f"{name}-{optimizer}-few" for name in STRATEGIES for optimizer in OPTIMIZERS]
FP32 += ["ddp-adamw-most", "zero2-adamw-most", "zero3_offload-sgd-most"]
BF16 = [f"{name}_bf16-{optimizer}-few" for name in STRATEGIES if name != "ddp" for optimizer in OPTIMIZERS]
BF16 += ["zero1_bf16-adamw-most"]
SAME = ["zero1-adamw-few", "zero3-sgd-few", "ddp-adamw-most", "zero1_bf16-adamw-few", "zero3_bf16-adamw-few"]
OTHER = [
    ("single-adamw-few", "zero3"),
    ("ddp-sgd-few", "zero1"),
    ("zero1-adamw-few", "zero2"),
    ("zero2-adamw-most", "ddp"),
    ("zero3-adamw-few", "ddp"),
    ("zero3-sgd-few", "single"),
    ("zero1-adamw-few", "single"),
]
"""A run, and the strategy that resumes it from the middle."""


def settings(case: str, mask: Path, resume: Path | None = None) -> dict[str, Any]:
    strategy, optimizer, _ = case.split("-")
    name = strategy.removesuffix("_bf16")
    common = {
        "trainer__max_steps": STEPS,
        "trainer__gradient_clip_val": CLIP,
        "trainer__micro_batch_size": 12 if name == "single" else 4,
        "trainer__precision": "32-true" if name == strategy else "bf16-mixed",
        "optimizer__weight_decay": 0.1,
        "callbacks__sparsity": None,
        "callbacks__evaluation": None,
        "callbacks__checkpoint": {"every_n_steps": SAVED, "keep_last": 9},
        "callbacks__update_mask": {"path": str(mask)},
    }
    chosen = {} if name == "single" else STRATEGIES[name]
    return tiny.config("sft", **common, **OPTIMIZERS[optimizer], **chosen, resume=str(resume) if resume else None)


def saved(folder: Path) -> Path:
    return folder / "checkpoints" / f"step-{SAVED:08d}"


class Runs:
    """All runs: those of two ranks in one launch, the single process's when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.masks = {name: masks.write(folder / name, tiny.config("sft"), d) for name, d in DENSITIES.items()}

    def mask(self, case: str) -> Path:
        return self.masks[case.rpartition("-")[2]]

    def alone(self, case: str) -> Path:
        """What a case has to equal: its optimizer and mask in one process, on whole batches."""
        name = f"single-{case.partition('-')[2]}"
        path = self.folder / name
        if not path.exists():
            assert run(settings(name, self.mask(name)), path) == 0
        return path

    def launch(self) -> None:
        resumed = [(case, case.partition("-")[0]) for case in SAME] + OTHER
        runs = [(settings(case, self.mask(case)), str(self.folder / case)) for case in (*FP32, *BF16)]
        runs += [(self.again(*pair), str(self.folder / "to".join(pair))) for pair in resumed if pair[1] != "single"]
        launch(runs, self.folder)
        for pair in OTHER:
            if pair[1] == "single":
                assert run(self.again(*pair), self.folder / "to".join(pair)) == 0

    def again(self, case: str, strategy: str) -> dict[str, Any]:
        return settings(f"{strategy}-{case.partition('-')[2]}", self.mask(case), saved(self.folder / case))

    def masters(self, path: Path) -> Path:
        """fp32 masters of the newest checkpoint of a run, as a folder."""
        out = self.folder / "masters" / path.name
        if not out.exists():
            assert (
                export.run({"network": "student", "checkpoint": str(path), "out": str(out), "dtype": "float32"}, out)
                == 0
            )
        return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    torch.set_num_threads(1)
    found = Runs(tmp_path_factory.mktemp("masked"))
    found.alone("single-adamw-few")
    found.launch()
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("case", [*FP32, *BF16])
def test_no_bit_outside_the_mask_changes(case: str, runs: Runs) -> None:
    path = runs.folder / case
    masks.check(runs.mask(case), path / "source", path / "model")
    masks.check(runs.mask(case), path / "source", runs.masters(path))


@pytest.mark.parametrize("case", FP32)
def test_inside_the_mask_two_ranks_equal_one_process(case: str, runs: Runs) -> None:
    alone = runs.alone(case)
    masks.check(runs.mask(case), alone / "source", alone / "model")
    expected = weights(alone / "model")
    for name, tensor in weights(runs.folder / case / "model").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)
    for ours, theirs in zip(tiny.metrics(runs.folder / case), tiny.metrics(alone), strict=True):
        for key in ("loss", "grad_norm", "mask/density", "mask/violations"):
            assert (key in ours) == (key in theirs), key
            assert key not in ours or ours[key] == pytest.approx(theirs[key], abs=2e-5, rel=1e-4), key


def test_the_gradient_that_is_measured_is_the_masked_one(runs: Runs) -> None:
    norms = {name: tiny.metrics(runs.alone(f"single-adamw-{name}"))[1]["grad_norm"] for name in DENSITIES}
    assert CLIP < norms["few"] < 0.8 * norms["most"]


@pytest.mark.parametrize("case", BF16)
def test_bf16_measures_and_clips_the_masked_gradient_too(case: str, runs: Runs) -> None:
    """Of the first step, before weights differ. The whole gradient has twice the norm of a fifth of it."""
    expected = tiny.metrics(runs.alone(case.replace("_bf16", "")))[1]["grad_norm"]
    assert tiny.metrics(runs.folder / case)[1]["grad_norm"] == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("case", SAME)
def test_resumed_equals_uninterrupted_bit_for_bit(case: str, runs: Runs) -> None:
    straight, again = (runs.masters(runs.folder / name) for name in (case, f"{case}to{case.partition('-')[0]}"))
    for name, tensor in weights(again).items():
        assert torch.equal(tensor, weights(straight)[name]), name


@pytest.mark.parametrize(("case", "strategy"), OTHER)
def test_another_strategy_goes_on_as_one_process_would(case: str, strategy: str, runs: Runs) -> None:
    again, alone = runs.folder / f"{case}to{strategy}", runs.alone(case)
    masks.check(runs.mask(case), alone / "source", again / "model")
    expected = weights(alone / "model")
    for name, tensor in weights(again / "model").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)
