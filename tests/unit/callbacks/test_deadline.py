"""The wall-clock limit: the earlier of two, and stopping while a step and a save still fit."""

from __future__ import annotations

import os
import time

import psutil
import pytest

from distill.callbacks import deadline
from distill.callbacks.deadline import RESERVE, Deadline


def test_without_a_limit_there_is_none() -> None:
    assert deadline.of_run(None, {}) is None


def test_it_counts_from_the_start_of_the_process() -> None:
    found = deadline.of_run(60, {})
    assert found is not None
    assert found.at == psutil.Process(os.getpid()).create_time() + 60


@pytest.mark.parametrize(("end", "at"), [("1000", 1000.0), ("9999999999", None)])
def test_the_earlier_limit_counts(end: str, at: float | None) -> None:
    found = deadline.of_run(3600, {"SLURM_JOB_END_TIME": end})
    assert found is not None
    assert found.at == (at or psutil.Process(os.getpid()).create_time() + 3600)


@pytest.mark.parametrize(("seconds_left", "reached"), [(5 + 3 + RESERVE + 1, False), (5 + 3 + RESERVE - 1, True)])
def test_it_is_reached_when_a_step_and_a_save_no_longer_fit(seconds_left: float, reached: bool) -> None:
    limit = Deadline(time.time() + seconds_left)
    limit.longest_step, limit.longest_save = 5, 3
    assert limit.reached() == reached
