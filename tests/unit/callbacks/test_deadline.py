"""The wall-clock limit: the earlier of two, and stopping while a step and a save still fit."""

from __future__ import annotations

import os
import time

import psutil
import pytest
import torch
from torch import nn

from distill.callbacks import deadline
from distill.callbacks.deadline import RATE, RESERVE, Deadline


def test_without_a_limit_there_is_none() -> None:
    assert deadline.of_run(None, environment={}) is None


def test_it_counts_from_the_start_of_the_process() -> None:
    found = deadline.of_run(60, environment={})
    assert found is not None
    assert found.at == psutil.Process(os.getpid()).create_time() + 60


@pytest.mark.parametrize(("end", "at"), [("1000", 1000.0), ("9999999999", None)])
def test_the_earlier_limit_counts(end: str, at: float | None) -> None:
    found = deadline.of_run(3600, environment={"SLURM_JOB_END_TIME": end})
    assert found is not None
    assert found.at == (at or psutil.Process(os.getpid()).create_time() + 3600)


@pytest.mark.parametrize(("seconds_left", "reached"), [(5 + 3 + RESERVE + 1, False), (5 + 3 + RESERVE - 1, True)])
def test_it_is_reached_when_a_step_and_a_save_no_longer_fit(seconds_left: float, reached: bool) -> None:
    limit = Deadline(time.time() + seconds_left)
    limit.longest_step, limit.longest_save = 5, 3
    assert limit.reached() == reached


@pytest.mark.parametrize(("seconds_left", "reached"), [(5 + 40 + RESERVE + 1, False), (5 + 40 + RESERVE - 1, True)])
def test_before_the_first_save_its_duration_is_estimated(seconds_left: float, reached: bool) -> None:
    limit = Deadline(time.time() + seconds_left, state=int(40 * RATE))
    limit.longest_step = 5
    assert limit.reached() == reached


def test_a_timed_save_replaces_the_estimate() -> None:
    limit = deadline.of_run(3600, int(40 * RATE), {})
    assert limit is not None
    assert limit.margin == 40 + RESERVE
    limit.longest_save = 3
    assert limit.margin == 3 + RESERVE


@pytest.mark.parametrize(("dtype", "trained"), [(torch.float32, 12), (torch.bfloat16, 14)])
def test_the_bytes_of_a_save_count_moments_and_masters_of_what_is_trained(dtype: torch.dtype, trained: int) -> None:
    model = nn.ModuleList([nn.Linear(10, 10, bias=False), nn.Linear(10, 5, bias=False)]).to(dtype)
    model[1].requires_grad_(False)
    assert deadline.state_bytes(model) == 100 * trained + 50 * dtype.itemsize


def test_the_bytes_of_a_save_count_whole_parameters_where_a_rank_holds_shards() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.ds_numel = 1000  # type: ignore[assignment]
    assert deadline.state_bytes(model) == 12_000
