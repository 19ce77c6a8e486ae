"""Difference sampling: which rows the teacher knows better than a reference model does (MiniPLM, arXiv 2410.17215).

r(x) = loss_ref(x) − loss_T(x), each the mean negative log-likelihood of the row's target tokens, in nats per token. The
paper's sequences are all of one length, where mean and sum order them alike; over rows of any length the mean is our
formulation: a sum would prefer long rows for their length. ``N`` target positions, ``V`` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import torch
from torch import Tensor

from distill.data.base import Dataset
from distill.errors import RunError
from distill.models import CausalLM
from distill.models.causal_lm import evaluating
from distill.rollouts.dataset import DatasetRollout
from distill.types import Batch, Row, collate

CHUNK = 1024
"""Positions whose logits exist at once."""


@dataclass(frozen=True)
class Difference:
    """Scores the samples of ``data``, in parts of ``rows``, ``batch_size`` of them in one pass of each model."""

    teacher: CausalLM
    reference: CausalLM
    data: Dataset
    rows: int
    batch_size: int

    @property
    def parts(self) -> int:
        return math.ceil(len(self.data) / self.rows)

    def make(self, number: int, on_progress: Callable[[float], None]) -> list[dict[str, Any]]:
        """One score per sample of a part: a function of the settings and its number. ``on_progress`` hears of rows
        done by both models.

        Raises:
            UserError: a sample is a prompt alone.
            RunError: a loss is not finite; the row is named.
        """
        samples = [self.data[i] for i in range(number * self.rows, min((number + 1) * self.rows, len(self.data)))]
        rows = DatasetRollout()(samples, [0] * len(samples), 0)
        ordered = sorted(range(len(rows)), key=lambda place: -len(rows[place].input_ids))
        losses = dict[int, tuple[float, float]]()
        for start in range(0, len(ordered), self.batch_size):
            places = ordered[start : start + self.batch_size]
            batch = collate([rows[place] for place in places], self.teacher.pad_id, 0, on_policy=False)
            losses |= zip(places, zip(nll(self.teacher, batch), nll(self.reference, batch), strict=True), strict=True)
            on_progress(len(places))
        return [_score(row, *losses[place]) for place, row in enumerate(rows)]


def nll(lm: CausalLM, batch: Batch) -> list[float]:
    """Negative log-likelihood of the targets, summed by row of the batch, in nats; softmax in fp32, sums in fp64."""
    batch = batch.to(next(lm.model.parameters()).device)
    targets = batch.targets
    with evaluating(lm.model):
        signal = lm.signal(batch)
        chunks = zip(signal.hidden.split(CHUNK), targets.split(CHUNK), strict=True)
        losses = torch.cat([_cross_entropy(signal.head(states), ids) for states, ids in chunks])
    rows = torch.arange(len(batch.input_ids), device=targets.device)[:, None].expand_as(batch.target_mask)
    sums = torch.zeros(len(batch.input_ids), dtype=torch.float64, device=targets.device)
    return [float(value) for value in sums.index_add(0, rows[batch.target_mask], losses.double())]


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def _score(row: Row, teacher: float, reference: float) -> dict[str, Any]:
    for name, loss in (("teacher", teacher), ("reference", reference)):
        if not math.isfinite(loss):
            raise RunError(f"the loss of the {name} is not finite on row {row.sample_id} of the data.")
    tokens = int(row.target_mask[1:].sum())
    return {
        "id": row.sample_id,
        "score": (reference - teacher) / tokens,
        "loss_teacher": teacher,
        "loss_reference": reference,
        "tokens": tokens,
    }


def best(scores: Sequence[float], keep: float) -> set[int]:
    """Places of the ceil(keep·n) highest of n scores; of equal ones the first."""
    # As it was written: 0.07 of 100 rows are 7, but the float is a little more.
    count = math.ceil(Decimal(str(keep)) * len(scores))
    return set(sorted(range(len(scores)), key=lambda place: -scores[place])[:count])
