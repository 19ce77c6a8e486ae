"""How the optimizer's state lies to the gradient, every N optimizer steps and at the last one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple
from typing import Any, NamedTuple

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
            found = state(optimizer, tensor)
            if found is None:
                continue
            for name, start, numel in self._pieces(tensor):
                self._sums[name] = self._sums.get(name, Moments()) + found.measured(start, numel)
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


class State(NamedTuple):
    """Gradient, first and second moment of one of an optimizer's tensors, flat; ``trained`` is its mask, if any."""

    gradient: Tensor
    first: Tensor
    second: Tensor | None
    trained: Tensor | None

    def measured(self, start: int, numel: int) -> Moments:
        """Of the coordinates from ``start`` on; outside a mask gradients are zero and second moments do not count."""
        stretch = slice(start, start + numel)
        found = agreement(self.gradient[stretch], self.first[stretch])
        if self.second is None:
            return found
        second = self.second[stretch]
        return found + spread(second if self.trained is None else second[self.trained[stretch]])


def state(optimizer: torch.optim.Optimizer, tensor: Tensor) -> State | None:
    """What an optimizer has of a tensor before its step; None without a gradient or a first moment (yet)."""
    trained: Tensor | None = None
    if isinstance(optimizer, MaskedOptimizer):
        kept, gradient, trained = optimizer.moments(tensor), optimizer.gradient(tensor), optimizer.selected(tensor)
    else:
        kept, gradient = optimizer.state.get(tensor, {}), tensor.grad
    first = next((kept[name] for name in FIRST if isinstance(kept.get(name), Tensor)), None)
    if first is None or gradient is None:
        return None
    second = kept[SECOND].reshape(-1) if SECOND in kept else None
    return State(gradient.reshape(-1), first.reshape(-1), second, trained)


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
