"""Reading and writing what an optimizer steps, without DeepSpeed (with it: tests/distributed/test_extrapolation.py)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distill import distributed
from distill.masked_optim import MASTER, MaskedOptimizer
from distill.masters import Masters

MASK = torch.tensor([True, False] * 10)


def parameters(dtype: torch.dtype) -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {name: nn.Parameter(torch.randn(4, 5).to(dtype)) for name in ("first", "other", "second")}


def masked(named: dict[str, nn.Parameter], compact: bool) -> MaskedOptimizer:
    made = MaskedOptimizer(torch.optim.AdamW(named.values(), lr=1e-3, fused=True), compact=compact)
    for parameter in named.values():
        made.assign(parameter, MASK)
    return made


def step(optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter]) -> None:
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_weights_are_copied_and_written(dtype: torch.dtype) -> None:
    named = parameters(dtype)
    optimizer = torch.optim.AdamW(named.values())
    masters = Masters(optimizer, named, ["first", "second"], sharded=False)
    assert [(part.name, part.low, part.numel) for part in masters.parts] == [("first", 0, 20), ("second", 0, 20)]
    read, other = masters.read(), named["other"].detach().clone()
    masters.write([value + 1 for value in read])
    assert torch.equal(named["first"], read[0].reshape(4, 5) + 1), "and what was read is a copy"
    assert torch.equal(named["second"], read[1].reshape(4, 5) + 1)
    assert torch.equal(named["other"], other)


def test_each_replica_is_one_ranks_to_write_down(monkeypatch: pytest.MonkeyPatch) -> None:
    named = parameters(torch.float32)
    masters = Masters(torch.optim.AdamW(named.values()), named, list(named), sharded=False)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    turns = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        turns.append(masters.own)
    assert turns == [[True, False, True], [False, True, False]]


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_masked_optimizer_goes_on_from_what_was_written(dtype: torch.dtype, compact: bool) -> None:
    named = parameters(dtype)
    optimizer = masked(named, compact)
    step(optimizer, named)
    masters = Masters(optimizer, named, ["first"], sharded=False)
    has_master = compact and dtype == torch.bfloat16
    [before] = masters.read()
    assert before.dtype == (torch.float32 if has_master else dtype)
    start, moments = named["first"].detach().clone(), optimizer.moments(named["first"])
    masters.write([before + 0.3])
    written = torch.where(MASK, (before + 0.3).to(dtype), start.reshape(-1)).reshape(4, 5)
    assert torch.equal(named["first"], written), "outside of the mask nothing is written"
    after: dict[str, Tensor] = optimizer.moments(named["first"])
    assert (MASTER in after) == has_master
    assert all(torch.equal(after[key], moments[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    assert torch.equal(masters.read()[0][MASK], (before + 0.3)[MASK]), "not rounded where there is a master"
    step(optimizer, named)
    # A step of lr = 1e-3, and not back to where a master was.
    assert (masters.read()[0][MASK].float() - (before + 0.3)[MASK].float()).abs().max() < 2e-2
