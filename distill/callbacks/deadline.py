"""The wall-clock limit of a run: whether another optimizer step, and saving after it, still fit before it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import psutil
from torch import nn

RESERVE = 10.0
"""Seconds for what follows the save: the report, closing the loggers, the end of the process."""


RATE = 100e6
"""Bytes per second that a file system takes at the least, supposed until a save has been timed."""


class Deadline:
    """``at`` is a time of :func:`time.time`; the two durations are the longest so far, in seconds.

    ``state`` is how many bytes a save writes, from which its duration is estimated until one has been timed.
    ``spared`` are seconds that the step being timed would have taken more, had all been done that a step may do.
    """

    def __init__(self, at: float, state: int = 0) -> None:
        self.at = at
        self.estimated_save = state / RATE
        self.longest_step = self.longest_save = self.spared = 0.0

    @property
    def margin(self) -> float:
        return self.longest_step + (self.longest_save or self.estimated_save) + RESERVE

    @property
    def left(self) -> float:
        return self.at - time.time()

    def reached(self) -> bool:
        """True at a step boundary after which another step and a save could be cut short."""
        return self.left < self.margin


def state_bytes(model: nn.Module) -> int:
    """Bytes of a checkpoint of ``model``: its weights and, of what is trained, AdamW's moments and fp32 masters."""
    total = 0
    for parameter in model.parameters():
        # DeepSpeed's number of elements of the whole parameter, of which this rank holds a shard.
        numel, size = getattr(parameter, "ds_numel", parameter.numel()), parameter.element_size()
        masters = 4 if size < 4 else 0
        total += numel * (size + (8 + masters) * parameter.requires_grad)
    return total


def of_run(max_time: float | None, state: int = 0, environment: Mapping[str, str] = os.environ) -> Deadline | None:
    """The earlier of ``max_time`` seconds after this process began and the end of the SLURM job; None without both.

    ``state`` is how many bytes a save writes.
    """
    limits = []
    if max_time is not None:
        limits.append(psutil.Process().create_time() + max_time)
    if end := environment.get("SLURM_JOB_END_TIME"):
        limits.append(float(end))
    return Deadline(min(limits), state) if limits else None
