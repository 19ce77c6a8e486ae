"""The loss of every recipe: label_weight·CE + logit_weight·divergence, summed over target positions.

Callers divide by the positions of the whole optimizer step. Metrics are sums over positions too, so that they add up
over micro-batches and ranks the same way. Shapes: ``N`` positions, ``n`` those of one chunk, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from distill import components
from distill.errors import UserError
from distill.losses.chunked import chunked_sum
from distill.losses.correlation import SOFTNESS_RANGE, pearson, spearman
from distill.losses.divergence import (
    ALPHA_RANGE,
    BETA_RANGE,
    forward_kl,
    jsd,
    log_probs,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    total_variation,
)
from distill.losses.policy import sampled_token
from distill.losses.topk import Tail, TopKFrom, topk_forward_kl, topk_reverse_kl
from distill.types import Signal

Divergence = Literal[
    "forward_kl",
    "reverse_kl",
    "jsd",
    "skew_forward_kl",
    "skew_reverse_kl",
    "total_variation",
    "topk_forward_kl",
    "topk_reverse_kl",
    "pearson",
    "spearman",
    "sampled_token",
    "custom",
]


@dataclass(frozen=True)
class Objective:
    """The fields are those of ``config.schema.Objective``. Raises UserError for a value that makes no sense.

    ``temperature`` divides the logits of both models in the divergence (and in the ratio of `sampled_token`), never in
    the cross-entropy; ``custom`` maps log-probabilities ``[n, V]`` of student and teacher to ``[n]``;
    ``scale_by_temperature_squared`` multiplies the divergence's share of the loss by its square.
    """

    label_weight: float = 0.0
    logit_weight: float = 1.0
    divergence: Divergence = "reverse_kl"
    beta: float = 0.5
    alpha: float = 0.1
    k: int = 32
    tail: Tail = "bucket"
    topk_from: TopKFrom = "teacher"
    softness: float = 0.1
    ratio_clip: float | None = None
    custom: Callable[[Tensor, Tensor], Tensor] | None = None
    temperature: float = 1.0
    scale_by_temperature_squared: bool = False
    chunk_size: int = 1024

    def __post_init__(self) -> None:
        for key, valid, allowed in self._limits():
            if not valid:
                raise UserError(f"objective.{key}", getattr(self, key), allowed)

    @property
    def needs_teacher(self) -> bool:
        return self.logit_weight > 0

    def __call__(
        self, student: Signal, targets: Tensor, teacher: Signal | None, sampler_logprobs: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(sum of the loss over ``N`` positions with its graph, detached fp32 sums of the metrics).

        ``targets`` int64 ``[N]``; ``sampler_logprobs`` ``[N]`` or None for dataset tokens. Metrics: ``loss``; ``ce``
        and ``student_entropy`` (temperature 1); with a teacher in use also the divergence, unscaled, under its own
        name and ``teacher_nll`` of the targets (temperature 1); for `topk_*` ``kept_mass`` (the teacher's) and
        ``student_kept_mass``; for `sampled_token` ``k1`` and, with ``ratio_clip``, ``clip_share``.

        Raises UserError when a teacher, or a sampler, is needed and missing, ValueError when shapes disagree.
        """
        if self.needs_teacher and teacher is None:
            raise UserError("objective.logit_weight", self.logit_weight, "0 when there is no teacher")
        used = teacher if self.needs_teacher else None
        return chunked_sum(self._positions, student, used, targets, sampler_logprobs, self.chunk_size)

    def _positions(
        self, student_logits: Tensor, teacher_logits: Tensor | None, targets: Tensor, sampler: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``[n, V]``, at least fp32 → weighted loss ``[n]`` and metrics ``[n]``.

        What only the metrics need comes last and without grad: recomputation under a checkpoint stops before it.
        """
        student = log_probs(student_logits)
        ce = -_of_targets(student, targets)
        terms, metrics = [], {"ce": ce.detach()}
        if self.label_weight > 0:
            terms.append(self.label_weight * ce)
        if teacher_logits is not None:
            teacher = log_probs(teacher_logits)
            value, details = self._compare(
                self._tempered(student_logits, student), self._tempered(teacher_logits, teacher), targets, sampler
            )
            scale = self.temperature**2 if self.scale_by_temperature_squared else 1.0
            terms.append(self.logit_weight * scale * value)
            metrics |= {self.divergence: value.detach(), "teacher_nll": -_of_targets(teacher, targets), **details}
        loss = torch.stack(terms).sum(0)
        metrics["loss"] = loss.detach()
        with torch.no_grad():
            metrics["student_entropy"] = torch.special.entr(student.exp()).sum(-1)
        return loss, metrics

    def _tempered(self, logits: Tensor, log_probabilities: Tensor) -> Tensor:
        return log_probabilities if self.temperature == 1 else log_probs(logits / self.temperature)

    def _compare(
        self, student: Tensor, teacher: Tensor, targets: Tensor, sampler: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Log-probabilities ``[n, V]`` of both → the divergence ``[n]`` and what it reports besides."""
        details: dict[str, Tensor] = {}
        match self.divergence:
            case "forward_kl":
                value = forward_kl(student, teacher, normalised=True)
            case "reverse_kl":
                value = reverse_kl(student, teacher, normalised=True)
            case "jsd":
                value = jsd(student, teacher, self.beta, normalised=True)
            case "skew_forward_kl":
                value = skew_forward_kl(student, teacher, self.alpha, normalised=True)
            case "skew_reverse_kl":
                value = skew_reverse_kl(student, teacher, self.alpha, normalised=True)
            case "total_variation":
                value = total_variation(student, teacher, normalised=True)
            case "topk_forward_kl" | "topk_reverse_kl":
                topk = topk_forward_kl if self.divergence == "topk_forward_kl" else topk_reverse_kl
                kept = topk(student, teacher, self.k, tail=self.tail, topk_from=self.topk_from, normalised=True)
                value = kept.value
                details = {"kept_mass": kept.teacher_mass, "student_kept_mass": kept.student_mass}
            case "pearson":
                value = pearson(student, teacher, normalised=True)
            case "spearman":
                value = spearman(student, teacher, self.k, self.softness, normalised=True)
            case "custom":
                value = self._custom(student, teacher)
            case "sampled_token":
                tokens = _of_targets(student, targets), _of_targets(teacher, targets)
                value, k1, clipped = sampled_token(*tokens, sampler, self.ratio_clip)
                details = {"k1": k1} | ({} if self.ratio_clip is None else {"clip_share": clipped})
        return value, details

    def _custom(self, student: Tensor, teacher: Tensor) -> Tensor:
        assert self.custom is not None
        value = self.custom(student, teacher)
        if value.shape != student.shape[:-1]:
            allowed = f"a function that maps [n, V] and [n, V] to [n] (it gave {list(value.shape)})"
            raise UserError("objective.custom", getattr(self.custom, "func", self.custom), allowed)
        return value

    def _limits(self) -> list[tuple[str, bool, str]]:
        """(field, whether its value is possible, what is)."""
        used = self.divergence if self.needs_teacher else ""
        return [
            ("divergence", self.divergence in get_args(Divergence), f"one of {', '.join(get_args(Divergence))}"),
            ("label_weight", self.label_weight >= 0, "at least 0"),
            ("logit_weight", self.logit_weight >= 0, "at least 0"),
            ("logit_weight", self.logit_weight > 0 or self.label_weight > 0, "above 0 when label_weight is 0"),
            ("beta", used != "jsd" or 0 < self.beta < 1, BETA_RANGE),
            ("alpha", not used.startswith("skew") or 0 <= self.alpha < 1, ALPHA_RANGE),
            ("k", self.k >= 1, "at least 1"),
            ("tail", self.tail in get_args(Tail), f"one of {', '.join(get_args(Tail))}"),
            ("topk_from", self.topk_from in get_args(TopKFrom), f"one of {', '.join(get_args(TopKFrom))}"),
            ("softness", self.softness > 0, SOFTNESS_RANGE),
            ("ratio_clip", self.ratio_clip is None or self.ratio_clip > 1, "null or above 1"),
            ("custom", used != "custom" or self.custom is not None, "a function with divergence 'custom'"),
            ("temperature", self.temperature > 0, "above 0"),
            ("chunk_size", self.chunk_size >= 1, "at least 1"),
        ]


def build(options: Mapping[str, Any]) -> Objective:
    """From the ``objective`` section of a configuration. Raises UserError for a function that cannot be imported."""
    custom = options["custom"]
    bound = None if custom is None else components.bind("objective.custom", custom)
    return Objective(**{**options, "custom": bound})


def _of_targets(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """``[n, V]`` and ids ``[n]`` → log-probability of each id ``[n]``."""
    return log_probabilities.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
