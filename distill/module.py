"""The one LightningModule: student forward, teacher signal, objective; every recipe runs through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from distill import distributed, optim, sharding
from distill.correction import Correction
from distill.features import FeatureTerms
from distill.masked_optim import MaskedOptimizer
from distill.models import lora
from distill.models.base import Network
from distill.mutual import PREFIX, Mutual
from distill.objective import Objective
from distill.teachers.base import Teacher
from distill.types import MicroBatch, Signal

KEYS = ("positions", "on_policy", "grad_norm", "lr", "schedule/KEY")
"""Keys recorded at each step besides those of the objective: target positions of the step, whether the student
sampled them, the gradient's norm before clipping, the learning rate the step took, the value of each key that has a
schedule. What rollouts count
(``Row.counts``) is recorded per target position: of ``speculative`` ones ``accepted``, ``replaced`` and
``teacher_calls``."""

ADAPTERS = "lora_alpha"
"""Of each network, the student first, in a checkpoint."""


class Loss(nn.Module):
    """Calls a loss of hidden states as a module of its own: what DeepSpeed gathers weights around.

    ``head`` is what the loss uses of the networks that are trained. It is not this module's, which would name it twice
    in checkpoints. ``hidden`` are their states, one tensor each.
    """

    def __init__(self, head: list[nn.Parameter]) -> None:
        super().__init__()
        self.head = tuple(head)

    def forward(self, loss: Callable[..., Tensor], *hidden: Tensor) -> Tensor:
        return loss(*hidden)


class DistillModule(L.LightningModule):
    """Trains ``lm.model`` against the teacher.

    The loss of a micro-batch is its sum over target positions divided by the count of the whole optimizer step, times
    the factors Lightning (micro-batches) and DDP (ranks) divide by again: gradients equal one big batch on one process.
    ``density`` is the share of the student's coordinates that train, where a mask says which. ``schedules`` are values
    by the key that they are of and the optimizer step, to be recorded; that of `objective.temperature` also counts.
    ``correction`` adds to the gradient, and to no number that is recorded but its norm; ``features`` add to the loss.
    The networks of ``mutual`` are trained, too, each in its own groups of the optimizer: their losses are sums of one
    backward pass. Any other teacher is a plain object outside the module tree, so it is in no checkpoint, optimizer or
    ``.train()`` call.
    """

    def __init__(
        self,
        lm: Network,
        teacher: Teacher | None,
        objective: Objective,
        optimizer: dict[str, Any],
        max_steps: int,
        seed: int,
        density: float | None = None,
        schedules: Mapping[str, Callable[[int], float]] | None = None,
        correction: Correction | None = None,
        mutual: Mutual | None = None,
        features: FeatureTerms | None = None,
    ) -> None:
        super().__init__()
        self.networks = [lm, *(() if mutual is None else mutual.networks.values())]
        self.student, self.cotrained = lm.model, nn.ModuleList(network.model for network in self.networks[1:])
        self.loss = Loss([parameter for network in self.networks for parameter in network.head_parameters])
        self.lm, self.teacher, self.objective = lm, teacher, objective
        self.optimizer_options, self.max_steps, self.seed = optimizer, max_steps, seed
        self.density = density
        self.schedules = schedules or {}
        self.correction, self.mutual, self.features = correction, mutual, features
        self._sums: dict[str, Tensor] = {}
        self._recorded: dict[str, float | Tensor] = {}
        self.positions = 0

    def on_fit_start(self) -> None:
        # Lightning leaves modes alone, and a loaded model is in evaluation mode: no dropout, no activation checkpoints.
        self.student.train()
        self.cotrained.train()
        if self.teacher is not None:
            self.teacher.place(self.device)
        if self.correction is not None:
            self.correction.begin(self.device)

    def on_train_batch_start(self, batch: MicroBatch, batch_idx: int) -> None:
        # Dropout depends on the step alone, so that a resumed run needs no generator state.
        torch.manual_seed(hash((self.seed, self.global_step, batch_idx, self.global_rank)) % 2**63)
        if self.correction is not None:
            self.correction.at(self.global_step, self.student)

    def training_step(self, batch: MicroBatch, batch_idx: int) -> Tensor:
        with nullcontext() if self.features is None else self.features.watching():
            return self._loss(batch)

    def _loss(self, batch: MicroBatch) -> Tensor:
        needed = self.objective.needs_teacher or self.features is not None
        asked = self.teacher if needed and self.mutual is None else None
        if self.features is not None and batch.teacher_states is not None:
            # A rollout's pass has left states, and not what the terms read on the way to them.
            batch = replace(cast(Any, batch), teacher_states=None)
        # Before the student's pass: its activations are not there yet, and see SelfTeacher.
        teacher = None if asked is None else asked.signal(batch)
        signals = [network.signal(batch) for network in self.networks]
        sums: dict[str, Tensor] = {}
        objective, mutual = self._scheduled(), self.mutual

        def of(*hidden: Tensor) -> Tensor:
            said = [Signal(states, signal.head) for states, signal in zip(hidden, signals, strict=True)]
            if mutual is None:
                loss, found = objective(said[0], batch.targets, teacher, batch.target_logprobs)
            else:
                loss, found = mutual(objective, said, batch.targets)
            sums.update(found)
            if self.features is not None:
                # Here, where heads are gathered.
                term, found, shares = self.features(batch)
                loss = loss + term
                sums.update(found)
                sums.update({key: sums[key] + share for key, share in shares.items()})
            return loss

        with sharding.gathered([] if asked is None else asked.head_parameters):
            loss: Tensor = self.loss(of, *(signal.hidden for signal in signals))
        if self.correction is not None:
            loss = loss + self.correction.term(self.student, batch)
        sums.update({name: torch.tensor(float(count), device=self.device) for name, count in batch.counts.items()})
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self.positions = batch.window_positions
        self.record({"on_policy": float(batch.on_policy)})
        return loss / max(batch.window_positions, 1) * self.trainer.accumulate_grad_batches * self.trainer.world_size

    def _scheduled(self) -> Objective:
        """The objective of this step; its schedules, and those of the rollout, are recorded."""
        values = {key: value(self.global_step) for key, value in self.schedules.items()}
        self.record({f"schedule/{key}": value for key, value in values.items()})
        temperature = values.get("objective.temperature")
        return self.objective if temperature is None else replace(self.objective, temperature=temperature)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if self.trainer.strategy.handles_gradient_accumulation:
            # DeepSpeed clips in its own step.
            return
        limit = float("inf") if gradient_clip_val is None else gradient_clip_val
        if isinstance(optimizer, MaskedOptimizer):
            norm = optimizer.clip(limit)
        else:
            norm = torch.nn.utils.clip_grad_norm_([p for p in self.parameters() if p.grad is not None], limit)
        self.record({"grad_norm": norm, **self.rates(optimizer)})

    def rates(self, optimizer: Any) -> dict[str, float]:
        """The learning rates of a step, to be recorded: the student's, and that of networks trained with it."""
        first, last = (float(optimizer.param_groups[index]["lr"]) for index in (0, -1))
        return {"lr": first} | ({} if self.mutual is None else {f"{PREFIX}/lr": last})

    def configure_optimizers(self) -> Any:
        parameters = self.student.parameters()
        options = self.optimizer_options
        rate = None if self.mutual is None else self.mutual.lr
        beside = [(model.parameters(), rate) for model in self.cotrained]
        optimizer, scheduler = optim.build(
            parameters, **options, max_steps=self.max_steps, density=self.density, beside=beside
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.mutual is not None:
            # Its weights know them by their numbers.
            checkpoint[PREFIX] = list(self.mutual.networks)
        # Their weights do not say how they are scaled.
        checkpoint[ADAPTERS] = [lora.alpha(network.model) for network in self.networks]
        if self.correction is not None:
            checkpoint.update(self.correction.state())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.correction is not None:
            self.correction.load(checkpoint)
        # Lightning counts micro-batches, and steps whenever the count divides: a resumed run whose steps have another
        # number of them would cut its windows in the wrong places.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        shift = checkpoint["global_step"] * self.trainer.accumulate_grad_batches - progress["ready"]
        progress.update({name: count + shift for name, count in progress.items()})

    def record(self, metrics: dict[str, float | Tensor]) -> None:
        """Adds metrics to the record of the current optimizer step."""
        self._recorded.update(metrics)

    def drain_metrics(self) -> dict[str, float]:
        """The finished step's metrics: means per target position over all ranks, then whatever was recorded.

        A collective: every rank calls it at the same step.
        """
        metrics: dict[str, float] = {}
        if self._sums:
            totals = distributed.all_sum(torch.stack([value.detach().double() for value in self._sums.values()]))
            means = (totals / max(self.positions, 1)).tolist()
            metrics = dict(zip(self._sums, means, strict=True))
            metrics["positions"] = float(self.positions)
        metrics |= {name: float(value) for name, value in self._recorded.items()}
        self.reset_metrics()
        return metrics

    def reset_metrics(self) -> None:
        self._sums, self._recorded = {}, {}
