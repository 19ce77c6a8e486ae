"""The losses of networks that are trained together, summed over target positions: DML, KDCL, SwitOKD.

Shapes: ``N`` target positions, ``n`` those of one chunk, ``k`` networks, ``H`` hidden width, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from distill.losses.chunked import chunked_sum
from distill.losses.divergence import kl, log_probs
from distill.losses.mutual import Ensemble, ensemble, mean_kl, paused
from distill.models.base import Network
from distill.objective import Objective
from distill.types import Signal

Method = Literal["dml", "kdcl", "switokd"]
PREFIX = "online"
"""Begins the names of what is recorded of a co-trained network: ``online/NAME/KEY``."""
KEYS = (
    "online/lr",
    "online/NAME/loss",
    "online/NAME/ce",
    "online/NAME/forward_kl",
    "online/NAME/paused",
)
"""Keys recorded at each step beside the student's: their learning rate, and of each per target position its loss, its
cross-entropy, the divergence it learns from and, with SwitOKD, the share of positions at which it does not learn."""


@dataclass(frozen=True)
class Mutual:
    """Which networks learn beside the student, by name, and what all of them learn.

    The fields are those of ``config.schema_online.Online``; weights are those of the co-trained networks' losses, the
    student's are in its objective. ``lr`` is theirs, None: the student's.
    """

    networks: Mapping[str, Network]
    method: Method
    ensemble: Ensemble
    label_weight: float
    logit_weight: float
    lr: float | None = None

    def __call__(
        self, objective: Objective, signals: Sequence[Signal], targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(sum of all networks' losses over ``N`` positions with its graph, detached fp32 sums of the metrics).

        ``signals`` are the student's and the networks', in order; ``targets`` int64 ``[N]``. No gradient flows from one
        network's loss to another. Metrics: ``loss``, ``ce``, ``forward_kl`` (unscaled) and ``student_entropy`` of the
        student; of every other ``online/NAME/loss``, ``…/ce`` and ``…/forward_kl``; with SwitOKD the teacher's
        ``…/paused``, 1 where it does not learn.
        """
        total, metrics = [], dict[str, Tensor]()
        for number, (name, signal) in enumerate(zip(["", *self.networks], signals, strict=True)):
            others = _others(signals, number)
            of = partial(self._positions, objective, number)
            loss, found = chunked_sum(of, signal, others, targets, None, objective.chunk_size)
            total.append(loss)
            metrics |= {key if number == 0 else f"{PREFIX}/{name}/{key}": value for key, value in found.items()}
        return torch.stack(total).sum(), metrics

    def _positions(
        self, objective: Objective, number: int, logits: Tensor, others: Tensor | None, targets: Tensor, _: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``[n, V]`` of network ``number``, ``[n, k - 1, V]`` of the others → its loss ``[n]`` and metrics."""
        assert others is not None
        label, logit = objective.label_weight, objective.logit_weight
        if number > 0:
            label, logit = self.label_weight, self.logit_weight
        own, heat = log_probs(logits), objective.temperature
        ce = -own.gather(-1, targets[:, None])[:, 0]
        tempered = own if heat == 1 else log_probs(logits / heat)
        if self.method == "kdcl":
            everyone = torch.cat([others[:, :number], logits.detach()[:, None], others[:, number:]], 1)
            apart = kl(log_probs(ensemble(everyone, targets, self.ensemble) / heat), tempered)
        else:
            apart = mean_kl(tempered, log_probs(others / heat))
        loss = label * ce + logit * (heat**2 if objective.scale_by_temperature_squared else 1.0) * apart
        metrics = {"ce": ce.detach(), "forward_kl": apart.detach()}
        if self.method == "switokd" and number > 0:
            still = paused(log_probs(others[:, 0] / heat), tempered.detach(), targets)
            # Not multiplied by 0: what is inf stays out.
            loss = loss.masked_fill(still, 0.0)
            metrics["paused"] = still.to(loss.dtype)
        metrics["loss"] = loss.detach()
        if number == 0:
            with torch.no_grad():
                metrics["student_entropy"] = torch.special.entr(own.exp()).sum(-1)
        return loss, metrics


def build(config: Mapping[str, Any], networks: Mapping[str, Network]) -> Mutual:
    """From the sections ``online`` and ``objective`` of a validated configuration."""
    options, objective = config["online"], config["objective"]
    weights = {
        key: objective[key] if options[key] is None else options[key] for key in ("label_weight", "logit_weight")
    }
    return Mutual(networks, options["method"], options["ensemble"], **weights, lr=options["lr"])


def keeps_statistics(config: Mapping[str, Any]) -> bool:
    """Whether co-trained networks normalise by the running statistics that they have (``models.batch_statistics``)."""
    asked: bool | None = config["online"]["frozen_batch_norm"]
    return bool(config["student"]["frozen_batch_norm"] if asked is None else asked)


def _others(signals: Sequence[Signal], number: int) -> Signal:
    """What all but one say: states ``[N, ΣH]`` side by side, without a graph, and the head to ``[n, k - 1, V]``."""
    rest = [signal for other, signal in enumerate(signals) if other != number]
    widths = [signal.hidden.shape[-1] for signal in rest]

    def head(packed: Tensor) -> Tensor:
        parts = packed.split(widths, -1)
        return torch.stack([signal.head(states) for states, signal in zip(parts, rest, strict=True)], 1)

    return Signal(torch.cat([signal.hidden.detach() for signal in rest], -1), head)
