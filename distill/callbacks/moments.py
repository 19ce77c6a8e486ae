"""How the optimizer's state lies to the gradient, every N optimizer steps and at the last one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple
from typing import Any

import lightning as L
import torch
from torch import Tensor

from distill import distributed, sharding
from distill.analysis.moments import FIELDS, Moments, agreement, spread
from distill.analysis.naming import GROUPS, place
from distill.analysis.sparsity import share
from distill.callbacks.steps import StepCallback
from distill.masked_optim import MaskedOptimizer

KEYS = (
    "optimizer/gradient_momentum_cosine",
    "optimizer/gradient_momentum_cosine/group/GROUP",
    "optimizer/root_v_variation",
    "optimizer/root_v_variation/group/GROUP",
    "time/optimizer_state",
)
"""Keys recorded: cos(g, m) and std(√v)/mean(√v), over all trained coordinates and by group, and the seconds that took.
g is the gradient of the step; m and v are the moments as that step found them. A number that is not defined is left
out: all of them at the first step, ``root_v_variation`` for an optimizer without a second moment."""
FIRST = ("exp_avg", "momentum_buffer")
SECOND = "exp_avg_sq"
"""Names of the moments in the states of torch's optimizers."""


class OptimizerState(StepCallback):
    """Records :data:`KEYS` from the optimizer's own state, wherever it is.

    A single process and DDP have gradients and moments of whole tensors, of which each rank measures its share. ZeRO
    of any stage steps torch's optimizer on this rank's part of flat fp32 vectors, offloaded or not: they are looked at
    as that optimizer begins its step, when gradients are summed over ranks and clipped. Clipping is one scale of all
    gradients, which the cosine does not see. Sums over coordinates are added over ranks, so that the numbers are those
    of one process but for the order of the sum.
    """

    label = "optimizer_state"

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._names: dict[int, str] = {}
        self._mine: set[str] = set()
        self._parts: dict[int, list[tuple[str, int, int]]] = {}
        self._sums: dict[str, Moments] = {}
        self._seconds = 0.0

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        named = [(name, p) for name, p in pl_module.lm.model.named_parameters() if p.requires_grad]
        self._names = {id(parameter): name for name, parameter in named}
        ranks = distributed.rank(), distributed.world_size()
        self._mine = set(share([name for name, _ in named], *ranks))

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        if not trainer.strategy.handles_gradient_accumulation:
            return
        zero: Any = trainer.optimizers[0]
        for parameters, flat in zip(*sharding.flat_groups(zero), strict=True):
            found = [(self._names[id(p)], start, numel) for p, start, _, numel in sharding.fragments(parameters)]
            self._parts[id(flat)] = found

        def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            self._look(trainer, optimizer)

        zero.optimizer.register_step_pre_hook(before_step)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        # Under DeepSpeed this comes with every micro-batch, and gradients are elsewhere.
        if not trainer.strategy.handles_gradient_accumulation:
            self._look(trainer, optimizer)

    def _look(self, trainer: L.Trainer, optimizer: torch.optim.Optimizer) -> None:
        if not self._due(trainer, trainer.global_step + 1):
            return
        began = time.perf_counter()
        for tensor in (tensor for group in optimizer.param_groups for tensor in group["params"]):
            first, second = moments(optimizer, tensor)
            gradient = optimizer.gradient(tensor) if isinstance(optimizer, MaskedOptimizer) else tensor.grad
            if first is None or gradient is None:
                continue
            gradient = gradient.reshape(-1)
            for name, start, numel in self._pieces(tensor):
                stretch = slice(start, start + numel)
                found = agreement(gradient[stretch], first[stretch])
                if second is not None:
                    found += spread(second[stretch])
                self._sums[name] = self._sums.get(name, Moments()) + found
        self._seconds += time.perf_counter() - began

    def _due(self, trainer: L.Trainer, step: int) -> bool:
        return step % self.every_n_steps == 0 or step >= trainer.max_steps

    def _pieces(self, tensor: Tensor) -> Iterator[tuple[str, int, int]]:
        """(parameter, start, length) of what this rank measures of one of the optimizer's tensors."""
        name = self._names.get(id(tensor))
        if name is None:
            yield from self._parts[id(tensor)]
        elif name in self._mine:
            yield name, 0, tensor.numel()

    def on_step(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        if not self._due(trainer, step):
            return
        began = time.perf_counter()
        names = list(self._names.values())
        mine = [astuple(self._sums.get(name, Moments())) for name in names]
        rows = distributed.all_sum(torch.tensor(mine, dtype=torch.float64).reshape(-1, FIELDS)).tolist()
        found = metrics({name: Moments(*row) for name, row in zip(names, rows, strict=True)})
        pl_module.record(found | {"time/optimizer_state": self._seconds + time.perf_counter() - began})
        self._sums, self._seconds = {}, 0.0


def moments(optimizer: torch.optim.Optimizer, tensor: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """First and second moment of one of an optimizer's tensors, flattened; None where it keeps none (yet)."""
    state = optimizer.moments(tensor) if isinstance(optimizer, MaskedOptimizer) else optimizer.state.get(tensor, {})
    kept = (state[name] for name in FIRST if isinstance(state.get(name), Tensor))
    first, second = next(kept, None), state.get(SECOND)
    return None if first is None else first.reshape(-1), None if second is None else second.reshape(-1)


def metrics(sums: Mapping[str, Moments]) -> dict[str, float]:
    """Sums of every parameter → the numbers of :data:`KEYS` that are defined (all but the time)."""
    scopes = {"": _total(sums.values())}
    for group in GROUPS:
        scopes[f"/group/{group}"] = _total(found for name, found in sums.items() if place(name).group == group)
    values = {f"optimizer/gradient_momentum_cosine{scope}": found.cosine for scope, found in scopes.items()}
    values |= {f"optimizer/root_v_variation{scope}": found.variation for scope, found in scopes.items()}
    return {key: value for key, value in values.items() if value is not None}


def _total(sums: Iterable[Moments]) -> Moments:
    return sum(sums, Moments())
