"""What is optimised, what decays, and the schedule counted in optimizer steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from distill import optim
from distill.config.schema import Optimizer


def build(model: nn.Module, steps: int = 10, **options: Any) -> tuple[Any, Any]:
    return optim.build(model.parameters(), **Optimizer(**options).model_dump(), max_steps=steps)


def rates(steps: int, **options: Any) -> list[float]:
    """The learning rate of each step."""
    model = nn.Linear(2, 2)
    optimizer, scheduler = build(model, steps, **options)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        model(torch.ones(2)).sum().backward()
        optimizer.step()
        scheduler.step()
    return found


def test_only_what_requires_a_gradient_is_optimised() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    optimizer, _ = build(model)
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in model[1].parameters()}


def test_matrices_decay_and_vectors_do_not() -> None:
    optimizer, _ = build(nn.Linear(2, 3), weight_decay=0.5)
    found = {tuple(p.shape): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert found == {(3, 2): 0.5, (3,): 0.0}


def test_a_model_without_vectors_has_one_group() -> None:
    optimizer, _ = build(nn.Linear(2, 3, bias=False))
    assert len(optimizer.param_groups) == 1


def test_schedules() -> None:
    assert rates(4, lr=1.0) == [1.0] * 4
    assert rates(4, lr=1.0, schedule="linear") == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert rates(4, lr=1.0, schedule="cosine") == pytest.approx([1.0, 0.8536, 0.5, 0.1464], abs=1e-4)


def test_warmup_comes_before_any_schedule() -> None:
    for schedule in ("constant", "linear", "cosine"):
        assert rates(6, lr=1.0, schedule=schedule, warmup_steps=2)[:3] == pytest.approx([0.0, 0.5, 1.0])


def test_sgd_has_momentum_and_no_second_moment() -> None:
    model = nn.Linear(2, 2)
    optimizer, _ = build(model, name="sgd", momentum=0.5)
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    assert isinstance(optimizer, torch.optim.SGD)
    assert {key for state in optimizer.state.values() for key in state} == {"momentum_buffer"}
