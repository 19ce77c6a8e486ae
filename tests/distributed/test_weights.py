"""What callbacks say of optimizer and weights is on two gloo ranks, under every strategy, what it is on one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill.commands.train import run
from tests import tiny
from tests.distributed.test_parity import STRATEGIES, torchrun

pytestmark = pytest.mark.timeout(300)
CALLBACKS = {"sparsity": None, "evaluation": None, "checkpoint": None, "optimizer_state": {"every_n_steps": 2}}
BF16 = {
    f"bf16-{name}": {**STRATEGIES[name], "trainer__precision": "bf16-mixed"} for name in ("zero1", "zero2", "zero3")
}
RUNS = {f"{name}-adamw": ("adamw", changes) for name, changes in (STRATEGIES | BF16).items()}
RUNS |= {f"{name}-sgd": ("sgd", STRATEGIES[name]) for name in ("ddp", "zero2", "zero3")}


def settings(optimizer: str, **changes: Any) -> dict[str, Any]:
    how = {"optimizer__lr": 0.3, "optimizer__momentum": 0.9} if optimizer == "sgd" else {"optimizer__lr": 1e-3}
    common = {"trainer__max_steps": 5, "trainer__gradient_clip_val": 0.02, "callbacks": dict(CALLBACKS)}
    return tiny.config("sft", optimizer__name=optimizer, **how, **common, **changes)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    runs = [(settings(optimizer, trainer__micro_batch_size=4, **changes), str(folder / name))
            for name, (optimizer, changes) in RUNS.items()]  # fmt: skip
    torchrun(runs, folder)
    return folder


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("one")
    for optimizer in ("adamw", "sgd"):
        assert run(settings(optimizer), folder / optimizer) == 0
    return {optimizer: folder / optimizer for optimizer in ("adamw", "sgd")}


@pytest.mark.parametrize("name", RUNS)
def test_optimizer_state(name: str, two_ranks: Path, one_process: dict[str, Path]) -> None:
    together, alone = tiny.metrics(two_ranks / name), tiny.metrics(one_process[RUNS[name][0]])
    compared = 0
    for ours, theirs in zip(together, alone, strict=True):
        keys = {key for key in theirs if key.startswith("optimizer/")}
        assert {key for key in ours if key.startswith("optimizer/")} == keys
        for key in keys:
            assert ours[key] == pytest.approx(theirs[key], rel=0.05 if "bf16" in name else 1e-4, abs=1e-5), key
            compared += 1
    assert compared > 10
