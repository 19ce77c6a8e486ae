"""The wall-clock limit of a run: whether another optimizer step, and saving after it, still fit before it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import psutil

RESERVE = 10.0
"""Seconds for what follows the save: the report, closing the loggers, the end of the process."""


class Deadline:
    """``at`` is a time of :func:`time.time`; the two durations are the longest so far, in seconds."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.longest_step = self.longest_save = 0.0

    @property
    def margin(self) -> float:
        return self.longest_step + self.longest_save + RESERVE

    @property
    def left(self) -> float:
        return self.at - time.time()

    def reached(self) -> bool:
        """True at a step boundary after which another step and a save could be cut short."""
        return self.left < self.margin


def of_run(max_time: float | None, environment: Mapping[str, str] = os.environ) -> Deadline | None:
    """The earlier of ``max_time`` seconds after this process began and the end of the SLURM job; None without both."""
    limits = []
    if max_time is not None:
        limits.append(psutil.Process().create_time() + max_time)
    if end := environment.get("SLURM_JOB_END_TIME"):
        limits.append(float(end))
    return Deadline(min(limits)) if limits else None
