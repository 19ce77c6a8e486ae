"""A teacher's gradient taken off the student's, on the same micro-batch: what ``variance_reduction`` adds to the loss.

``N`` targets of a micro-batch, n those of the whole data; θ the teacher's weights, x the student's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill import distributed
from distill.errors import UserError
from distill.losses.reduction import pull, slope
from distill.models import batch_statistics
from distill.models.base import Network
from distill.objective import Objective
from distill.types import MicroBatch

AT_ONCE = 256
"""Samples of a forward pass over the whole data."""
STATE = "variance_reduction"
"""Name of the state in a checkpoint."""
DECAYING = 2
"""Dimensions from which on a parameter has an ℓ2 term: `optim.parameter_groups` decays matrices alone."""


class Correction:
    """The term that makes a step of SGD x − γ·(∇f_ξ(x) − λ·(∇f_ξ(θ) − ∇f(θ))), ∇f(θ) where it is ``unbiased``.

    Args:
        reference: the teacher, of the student's architecture; copied, so that θ may move while whoever else asks the
            teacher finds it unchanged. In evaluation mode: its noise is that of the samples alone.
        weight: λ.
        l2: μ, the optimizer's weight decay: SGD adds μx to the gradient, and so f has an ℓ2 term at θ, too.
        data: makes the micro-batches of this rank's share of the whole data.
        every: θ becomes x every so many optimizer steps; None: never.

    A plain object outside of every module tree; θ and ∇f(θ) are state where θ moves.
    """

    def __init__(
        self,
        reference: Network,
        *,
        weight: float,
        unbiased: bool,
        l2: float,
        data: Callable[[], Iterable[MicroBatch]],
        every: int | None = None,
    ) -> None:
        self.reference = copy.deepcopy(reference)
        self.weight, self.unbiased, self.l2, self.data, self.every = weight, unbiased, l2, data, every
        self.taken = 0
        self.mean: list[Tensor] | None = None
        self.loss = Objective(label_weight=1.0, logit_weight=0.0)
        self.reference.model.requires_grad_(True)
        self.reference.model.eval()

    @property
    def theta(self) -> list[nn.Parameter]:
        return list(self.reference.model.parameters())

    def begin(self, device: torch.device | str) -> None:
        """Goes to where it is asked, and takes ∇f(θ) unless it was loaded. A collective."""
        self.reference.model.to(device)
        if self.mean is not None:
            self.mean = [value.to(device) for value in self.mean]
        elif self.unbiased:
            self.mean = self._of_all()

    def at(self, step: int, student: nn.Module) -> None:
        """Before each micro-batch of optimizer step ``step`` (from 0): θ ← x where it is time. A collective then."""
        if self.every is None or step == self.taken or step % self.every:
            return
        with torch.no_grad():
            for held, current in zip(self.theta, student.parameters(), strict=True):
                held.copy_(current)
        self.taken = step
        if self.unbiased:
            self.mean = self._of_all()

    def term(self, student: nn.Module, batch: MicroBatch) -> Tensor:
        """A scalar to be added to the micro-batch's sum of losses over its targets: a sum over them as well."""
        count, slopes = len(batch.targets), []
        means: Sequence[Tensor | None] = self.mean or [None] * len(self.theta)
        for gradient, held, mean in zip(self._of(batch), self.theta, means, strict=True):
            whole = gradient + count * self._shrinking(held)
            slopes.append(slope(whole, self.weight, None if mean is None else count * mean))
        return pull(list(student.parameters()), slopes)

    def _shrinking(self, parameter: Tensor) -> Tensor:
        """The gradient of the ℓ2 term."""
        decays = parameter.ndim >= DECAYING
        return parameter.detach() * (self.l2 if decays else 0.0)

    def _of(self, batch: MicroBatch) -> list[Tensor]:
        """The gradient of the sum of cross-entropies at θ."""
        with torch.enable_grad():
            loss, _ = self.loss(self.reference.signal(batch), batch.targets, None, None)
            found = torch.autograd.grad(loss, self.theta, allow_unused=True)
        pairs = zip(self.theta, found, strict=True)
        return [torch.zeros_like(held) if gradient is None else gradient for held, gradient in pairs]

    def _of_all(self) -> list[Tensor]:
        """∇f(θ): over the data of all ranks. A collective."""
        sums, count = [torch.zeros_like(held) for held in self.theta], 0
        device = self.theta[0].device
        for batch in self.data():
            count += len(batch.targets)
            for total, gradient in zip(sums, self._of(batch.to(device)), strict=True):  # type: ignore[attr-defined]
                total += gradient
        targets = distributed.all_sum(torch.tensor(float(count), dtype=torch.float64))
        means = [distributed.all_sum(total) / targets.to(total) for total in sums]
        return [mean + self._shrinking(held) for mean, held in zip(means, self.theta, strict=True)]

    def state(self) -> dict[str, Any]:
        """Plain tensors, for a checkpoint; empty where θ never moves."""
        if self.every is None:
            return {}
        mean = None if self.mean is None else [value.cpu() for value in self.mean]
        return {STATE: {"taken": self.taken, "theta": [held.detach().cpu() for held in self.theta], "mean": mean}}

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes the state that :meth:`state` put into a checkpoint.

        Raises:
            UserError: it has none, and θ moves.
        """
        if self.every is None:
            return
        if STATE not in checkpoint:
            allowed = "null: the run that is resumed had a teacher that stays as it is"
            raise UserError("variance_reduction.refresh_every_n_steps", self.every, allowed)
        state = checkpoint[STATE]
        with torch.no_grad():
            for held, value in zip(self.theta, state["theta"], strict=True):
                held.copy_(value)
        self.taken, self.mean = state["taken"], state["mean"]


def build(
    config: Mapping[str, Any],
    student: Any,
    teacher: Any,
    data: Any,
    rows: Callable[..., list[Any]],
    collate: Callable[..., MicroBatch],
) -> Correction | None:
    """From ``variance_reduction``, ``optimizer`` and ``teacher`` of a configuration; None where it is off.

    ``rows`` and ``collate`` are those of the task.

    Raises:
        UserError: the teacher is not of the student's architecture, or reads other pixels; or the student normalises by
            statistics of a batch.
    """
    options = config.get("variance_reduction")
    if options is None:
        return None
    _check(config, student, teacher.lm)

    def batches() -> Iterator[MicroBatch]:
        mine = range(distributed.rank(), len(data), distributed.world_size())
        for start in range(0, len(mine), AT_ONCE):
            samples = [data[number] for number in mine[start : start + AT_ONCE]]
            yield collate(rows(samples, [0] * len(samples), 0), 0, False)

    return Correction(
        teacher.lm,
        weight=options["weight"],
        unbiased=options["unbiased"],
        l2=config["optimizer"]["weight_decay"],
        data=batches,
        every=options["refresh_every_n_steps"],
    )


def _check(config: Mapping[str, Any], student: Any, teacher: Any) -> None:
    name = config["teacher"]["path"] or config["teacher"]["config"]
    key = f"teacher.{'config' if config['teacher']['path'] is None else 'path'}"
    shapes = [{n: tuple(p.shape) for n, p in lm.model.named_parameters()} for lm in (student, teacher)]
    if shapes[0] != shapes[1] or type(student.model) is not type(teacher.model):
        kind = student.model.config.model_type
        raise UserError(key, name, f"a model of the student's architecture ({kind!r}, every weight of the same shape)")
    activations = [getattr(lm.model.config, "activation", None) for lm in (student, teacher)]
    if activations[0] != activations[1]:
        raise UserError(key, name, f"a model of the student's architecture (activation {activations[0]!r})")
    if student.scale != teacher.scale:
        raise UserError(key, name, "a model that scales pixels as the student does (data.mean, data.std)")
    if batch_statistics.layers(student.model):
        allowed = "a model without batch statistics with variance_reduction, which takes each sample's own gradient"
        raise UserError("student.config", student.model.config.model_type, allowed)
