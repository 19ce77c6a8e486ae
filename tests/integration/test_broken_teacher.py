"""A teacher whose logits turn to NaN ends the run in one line, whatever is made of them, and what was saved stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill import checkpoint
from distill.commands.train import run
from distill.errors import RunError
from distill.teachers.frozen import FrozenTeacher
from distill.types import MicroBatch, Signal
from tests import tiny


@pytest.mark.parametrize("divergence", ["forward_kl", "pearson"])
def test_a_teacher_that_turns_to_nan_is_named(divergence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    signal = FrozenTeacher.signal

    def breaking(self: FrozenTeacher, batch: MicroBatch) -> Signal:
        nonlocal asked
        asked += 1
        found = signal(self, batch)
        return found if asked < 4 else Signal(torch.full_like(found.hidden, torch.nan), found.head)

    monkeypatch.setattr(FrozenTeacher, "signal", breaking)
    options = {"callbacks__evaluation": None, "callbacks__checkpoint__every_n_steps": 1}
    with pytest.raises(RunError, match="The teacher's logits are NaN") as caught:
        run(tiny.config("offline_kd", objective__divergence=divergence, **options), tmp_path)
    assert "\n" not in str(caught.value)
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert checkpoint.verify(newest).step == 3
