"""Gradients of cross-entropy and of the KL to the teacher on blocks of a step's samples, apart from its training.

Nothing of the training is touched: no ``.grad``, generator, buffer, engine or wrapper. Gradients are taken for given
parameters, which neither DDP nor DeepSpeed notices, and each is folded and freed as soon as it is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from distill import distributed, sharding
from distill.analysis.sketch import Sketch
from distill.analysis.variance import Blocks
from distill.data.window import Collate, RolloutFunction
from distill.models.base import Network
from distill.objective import Objective
from distill.teachers.base import Teacher
from distill.types import Signal

Context = Callable[[], AbstractContextManager[object]]
FEWEST = 3
"""Blocks that standard errors take."""


@dataclass
class BlockGradients:
    """Measures the student against the teacher on the data's own targets of some samples.

    ``rows`` and ``collate`` make micro-batches of samples. ``blocks`` is how many parts a step is cut into, ``size``
    the length of the sketch, ``micro_rows`` the rows of one pass.
    ``autocast`` surrounds forward passes, ``weights`` all passes (weights in shards are gathered inside of it).
    ``mask`` tells, by name, which coordinates train, where not all do.
    """

    lm: Network
    teacher: Teacher
    rows: RolloutFunction
    collate: Collate
    blocks: int
    size: int
    micro_rows: int
    chunk_size: int
    autocast: Context = nullcontext
    weights: Context = nullcontext
    lockstep: bool = False
    """Whether a pass is a collective: every rank makes as many of them."""
    mask: Callable[[str], Tensor] | None = None

    def __post_init__(self) -> None:
        named = self.lm.model.named_parameters()
        self._trained: dict[str, Any] = {name: parameter for name, parameter in named if parameter.requires_grad}
        # Under ZeRO-3 a parameter is empty where it is not gathered.
        lengths = {name: math.prod(getattr(p, "ds_shape", p.shape)) for name, p in self._trained.items()}
        self._sketch = Sketch(lengths, self.size)
        shared: dict[str, Any] = {"chunk_size": self.chunk_size}
        self._ce = Objective(label_weight=1.0, logit_weight=0.0, **shared)
        self._kd = Objective(label_weight=0.0, logit_weight=1.0, divergence="forward_kl", **shared)

    def __call__(self, samples: list[Any], device: torch.device, step: int = 0) -> Blocks | None:
        """The blocks of the samples with a completion, the same on every rank; None where these are too few. ``step``
        is what rows that change at random depend on.

        A collective. The samples are those of all ranks, in an order that does not depend on how many there are.
        """
        # An image always has a class.
        found = [sample for sample in samples if getattr(sample, "has_completion", True)]
        rows = self.rows(found, [0] * len(found), step)
        count = min(self.blocks, len(rows))
        if count < FEWEST:
            return None
        cut = [rows[b * len(rows) // count : (b + 1) * len(rows) // count] for b in range(count)]
        targets = torch.tensor([sum(row.positions for row in block) for block in cut])
        # CE and KD of every block.
        totals = self._sketch.empty(2 * count, device).view(2, count, -1)
        with _undisturbed(self.lm.model, device), self.weights():
            for number, block in enumerate(cut):
                for micro_batch, counts in self._share(block):
                    self._pass(micro_batch, device, totals[:, number] if counts else None)
        self._sketch.forget()
        totals = distributed.all_sum(totals).cpu() / int(targets.sum())
        return Blocks(targets, totals[0], totals[0] - totals[1], self._sketch.exact)

    def _share(self, block: list[Any]) -> Iterator[tuple[list[Any], bool]]:
        """This rank's micro-batches of a block, and whether they count: others only keep the ranks together."""
        rank, ranks = distributed.rank(), distributed.world_size()
        mine = sorted(block, key=lambda row: row.length)[rank::ranks]
        most = math.ceil(len(block) / ranks)
        for start in range(0, most, self.micro_rows):
            rows = mine[start : start + self.micro_rows]
            if rows:
                yield rows, True
            elif self.lockstep:
                yield block[:1], False

    def _pass(self, rows: list[Any], device: torch.device, totals: Tensor | None) -> None:
        batch: Any = self.collate(rows, 1, False)
        batch = batch.to(device)
        head = [*self.lm.head_parameters, *self.teacher.head_parameters]
        with self.autocast():
            teacher, student = self.teacher.signal(batch), self.lm.signal(batch)
        for number, (objective, asked) in enumerate(((self._ce, None), (self._kd, teacher))):
            # One after the other: the loss already holds the whole gradient of its head.
            with self.autocast(), sharding.gathered(head):
                loss, _ = objective(Signal(student.hidden, student.head), batch.targets, asked, None)
            self._fold(loss, None if totals is None else totals[number], again=asked is None)

    def _fold(self, loss: Tensor, total: Tensor | None, *, again: bool) -> None:
        """Walks backward once; every gradient is folded when it is known, and freed."""

        def folded(name: str, gradient: Tensor) -> Tensor:
            if total is not None:
                kept = gradient if self.mask is None else gradient * self.mask(name).to(gradient.device)
                self._sketch.add(total, name, kept)
            # What autograd hands on in its place takes no memory.
            return gradient.new_zeros(()).expand_as(gradient)

        hooks = [p.register_hook(partial(folded, name)) for name, p in self._trained.items()]
        try:
            torch.autograd.grad(loss, list(self._trained.values()), retain_graph=again, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode with gradients: no dropout, no running statistics; modes and generators come back afterwards.

    Layers that recompute their activations, which they do in training mode alone, go on doing so.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad(), _recomputing(model):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        # As after an evaluation: casts kept here are not those of the next step.
        torch.clear_autocast_cache()


@contextmanager
def _recomputing(model: nn.Module) -> Iterator[None]:
    """Has layers believe that they train while they decide whether to recompute, and not while they run: what drops out
    there may go by the layer's own mode (OPT, BioGPT)."""
    found: list[Any] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    asked = [(layer, layer._gradient_checkpointing_func) for layer in found if layer.gradient_checkpointing]
    for layer, checkpoint in asked:
        layer.training, layer._gradient_checkpointing_func = True, partial(_evaluating_inside, layer, checkpoint)
    try:
        yield
    finally:
        for layer, checkpoint in asked:
            layer._gradient_checkpointing_func = checkpoint


def _evaluating_inside(layer: nn.Module, checkpoint: Callable[..., Any], run: Callable[..., Any], *inputs: Any) -> Any:
    def quietly(*given: Any) -> Any:
        layer.training = False
        try:
            return run(*given)
        finally:
            layer.training = True

    return checkpoint(quietly, *inputs)
