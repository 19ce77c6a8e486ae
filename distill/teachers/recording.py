"""What a live teacher says about rows, as the entries of a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.cache.compress import FIELDS, Kept, compress
from distill.cache.shard import Entry, token_hash
from distill.errors import RunError
from distill.teachers.base import Teacher
from distill.types import Batch, Row, collate

CHUNK = 1024
"""Positions whose logits exist at once."""


@dataclass(frozen=True)
class Recording:
    """How a teacher on ``device`` is asked, ``batch_size`` rows at a time, and what is kept: of its logits divided by
    ``temperature`` the ``k`` likeliest tokens and ``draws`` of the others, or its states where ``k`` is 0."""

    teacher: Teacher
    device: torch.device
    pad_id: int
    batch_size: int
    temperature: float
    k: int
    draws: int

    def entries(self, rows: list[Row], uniforms: list[Tensor], advance: Callable[[float], None]) -> list[Entry]:
        """One entry per row, in order. ``uniforms[i]`` fp64 ``[targets]`` in [0, 1); ``advance`` hears of rows done.

        Raises RunError for logits that are not finite.
        """
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
        found: dict[int, Entry] = {}
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            batch = collate([rows[index] for index in part], self.pad_id, window_positions=0, on_policy=False)
            drawn = torch.cat([uniforms[index] for index in part])
            sizes = batch.target_mask.sum(-1).tolist()
            for index, entry in zip(part, self._entries([rows[i] for i in part], batch, sizes, drawn), strict=True):
                found[index] = entry
            advance(len(part))
        return [found[index] for index in range(len(rows))]

    def _entries(self, rows: list[Row], batch: Batch, sizes: list[int], uniforms: Tensor) -> list[Entry]:
        with torch.no_grad():
            signal = self.teacher.signal(batch.to(self.device))
            if self.k == 0:
                parts = torch.split(_finite(signal.hidden).cpu(), sizes)
                return [
                    Entry(row.sample_id, token_hash(row), None, part) for row, part in zip(rows, parts, strict=True)
                ]
            chunks = [
                self._keep(signal.head(signal.hidden[at]), batch.targets[at], uniforms[at])
                for at in _slices(len(uniforms))
            ]
        whole = Kept(*(torch.cat([getattr(chunk, name) for chunk in chunks]) for name in FIELDS))
        places = torch.split(torch.arange(len(uniforms)), sizes)
        pairs = zip(rows, places, strict=True)
        return [Entry(row.sample_id, token_hash(row), whole.take(place), None) for row, place in pairs]

    def _keep(self, logits: Tensor, targets: Tensor, uniforms: Tensor) -> Kept:
        # A token that the teacher has masked (-inf) is no mistake; a position without a distribution is one.
        _finite(logits.float().logsumexp(-1))
        log_probs = torch.log_softmax(logits.float() / self.temperature, -1)
        return compress(log_probs, targets.to(logits.device), self.k, self.draws, uniforms).to("cpu")


def _slices(count: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]


def _finite(values: Tensor) -> Tensor:
    if not bool(values.isfinite().all()):
        raise RunError("The teacher's logits are not finite: its weights hold NaN or inf, or its dtype is too narrow.")
    return values
