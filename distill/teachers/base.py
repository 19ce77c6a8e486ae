"""What every teacher offers, whatever it is made of."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from distill.types import Signal


class Teacher(Protocol):
    """Answers a batch with what it says at the batch's targets. A plain object outside of every module tree."""

    @property
    def judge(self) -> Teacher | None:
        """What an evaluation compares the student with on other texts; None where nothing can be asked about them."""
        ...

    @property
    def max_positions(self) -> int | None:
        """The longest sequence it can read; None if there is no limit."""
        ...

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        """What the signal's head is made of; gathered around the loss where weights are in shards."""
        ...

    def signal(self, batch: Any) -> Signal:
        """``[N, …]`` per target and a head that turns them into logits, or log-probabilities, ``[N, V]``; the loss
        sees no more of a teacher than that. Nothing carries gradients. ``batch`` is a ``types.MicroBatch``."""
        ...

    def place(self, device: torch.device | str) -> Teacher:
        """Moves the teacher to where it is asked."""
        ...
