"""What the matrices of parity share: strategies, settings of a run, and what two processes have in common with one.

Rows are ragged and do not divide evenly: 6 a rank, in micro-batches of 4 and 2 (so two are accumulated), against 12 at
once; gradients are clipped.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill.commands.train import run
from tests import tiny

STEPS, CLIP = 2, 0.02
"""The second step has the moments of the first; more would find nothing that it does not."""
LEARNING_RATE = {"sgd": 0.3, "adamw": 1e-3}
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"trainer__strategy": "ddp"},
    "zero1": {"trainer__strategy": "zero1"},
    "zero2": {"trainer__strategy": "zero2"},
    "zero3": {"trainer__strategy": "zero3"},
    "zero3_offload": {"trainer__strategy": "zero3", "trainer__offload": True},
}
SHARDED: dict[str, Any] = {"trainer__strategy": "zero3", "teacher__placement": "sharded"}
OWN = {"time", "tokens_per_second", "stage", "mask/state_bytes", "mask/dense_state_bytes"}
"""What is logged of a process or of as many as there are, or is no number."""
Case = tuple[str, str, dict[str, Any]]
"""A recipe of ``tests.tiny``, an optimizer, and changes."""


def settings(recipe: str, optimizer: str = "adamw", **changes: Any) -> dict[str, Any]:
    common = {
        "recipe": recipe,
        "optimizer__name": optimizer,
        "optimizer__lr": LEARNING_RATE[optimizer],
        "trainer__max_steps": STEPS,
        "trainer__gradient_clip_val": CLIP,
        "callbacks__checkpoint": None,
        "callbacks__sparsity": {"every_n_steps": 1},
    }
    return tiny.config(**common | changes)


class References:
    """Trains in one process what a case has to equal, once; ``kept`` are the changes that it makes, too."""

    def __init__(self, folder: Path, kept: Collection[str]) -> None:
        self.folder, self.kept = folder, kept

    def __call__(self, case: Case) -> Path:
        recipe, optimizer, changes = case
        kept = {key: value for key, value in changes.items() if key in self.kept}
        path = self.folder / f"{recipe}-{optimizer}-{abs(hash(json.dumps(kept)))}"
        if not path.exists():
            assert run(settings(recipe, optimizer, **kept), path) == 0
        return path


def weights(run_dir: Path, part: str = "model") -> dict[str, torch.Tensor]:
    """The student's, and under ``NAME.`` those of networks trained with it."""
    found = load_file(run_dir / part / "model.safetensors")
    for folder in (run_dir / "online").glob(f"*/{part}"):
        own = load_file(folder / "model.safetensors")
        found |= {f"{folder.parent.name}.{key}": tensor for key, tensor in own.items()}
    return found


def same_weights(together: Path, alone: Path) -> None:
    """Two processes end where one ends, and not where they began."""
    ours, expected, start = weights(together), weights(alone), weights(alone, "source")
    assert set(ours) == set(expected) == set(start)
    assert max(float((expected[key] - start[key]).abs().max()) for key in expected) > 1e-3
    for key, tensor in expected.items():
        torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-5, msg=lambda text, n=key: f"{n}: {text}")


def same_metrics(together: Path, alone: Path, staged: bool) -> None:
    """Two processes log what one logs; ``staged``: in two stages, of which the last step of one starts the other."""
    ours, theirs = tiny.metrics(together), tiny.metrics(alone)
    expected = [*range(STEPS + 1), *(range(STEPS, 2 * STEPS + 1) if staged else ())]
    assert [record["step"] for record in ours] == [record["step"] for record in theirs] == expected
    assert max(record.get("grad_norm", 0.0) for record in theirs) > CLIP, "nothing was clipped"
    for our, their in zip(ours, theirs, strict=True):
        assert set(our) == set(their)
        assert our.get("stage") == their.get("stage")
        for key in set(our) - OWN:
            if not key.startswith("time/"):
                assert our[key] == pytest.approx(their[key], abs=2e-5, rel=1e-4), key
