"""Everything that is measured of one matrix in a run: its update's spectrum, and where that lies in the source's.

Both precisions, each beside one draw of the norm-matched rounding null (:mod:`distill.analysis.nulls`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from distill.analysis import principal, spectrum
from distill.analysis.decompose import Decomposition, decompose
from distill.analysis.nulls import random_update

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
DIRECTIONS = 16
"""K: the right singular vectors of Δ by which updates of different steps are compared."""
LIMIT = 1 << 30
"""Bytes of source decompositions that a rank keeps; what does not fit is decomposed again at each measurement."""

METRICS = (*spectrum.METRICS, *principal.METRICS)

Values = dict[str, float]


class Sources:
    """Decompositions of θ₀ in CPU memory, kept from one measurement to the next while they fit ``limit`` bytes."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit, self.held_bytes = limit, 0
        self._kept: dict[tuple[str, str], Decomposition] = {}

    def of(self, name: str, precision: str, matrix: Tensor) -> Decomposition:
        """The decomposition of a source matrix, which is the same at every call with these names."""
        if (name, precision) in self._kept:
            return _on(self._kept[name, precision], matrix.device)
        found = _top(matrix)
        parts = [part for part in (found.values, found.left, found.right) if part is not None]
        size = sum(part.numel() * part.element_size() for part in parts)
        if self.held_bytes + size <= self.limit:
            self._kept[name, precision] = _on(found, "cpu")
            self.held_bytes += size
        return found


def _on(found: Decomposition, device: torch.device | str) -> Decomposition:
    left, right = (None if part is None else part.to(device) for part in (found.left, found.right))
    return replace(found, values=found.values.to(device), left=left, right=right)


def measure(
    name: str, source: Tensor, trained: Tensor, sources: Sources, seed: int
) -> tuple[dict[str, Values], Tensor | None]:
    """METRICS of both precisions, where defined, with those of the null under ``null_METRIC``; and Δ's directions.

    The directions are the top DIRECTIONS right singular vectors of Δ in fp32, ``[columns, K]``, None without an update.
    The null is drawn by (``seed``, ``name``), for the fp32 norm of Δ, and stored as ``trained`` is.
    """
    norm = float((trained.double() - source.double()).norm())
    # Drawn on the CPU, where the generator is the same everywhere.
    moved = random_update(name, source.cpu(), norm, trained.dtype, seed)[1].to(trained.device)
    rows = dict[str, Values]()
    directions = None
    for precision, dtype in PRECISIONS.items():
        start, before = sources.of(name, precision, source.to(dtype).float()), source.to(dtype)
        # The last precision's, fp32.
        found, directions = _values(start, before, trained.to(dtype), min(DIRECTIONS, *source.shape))
        null, _ = _values(start, before, moved.to(dtype), 0)
        rows[precision] = found | {f"null_{metric}": value for metric, value in null.items()}
    return rows, None if directions is None or not norm else directions.float().cpu()


def _values(start: Decomposition, source: Tensor, trained: Tensor, vectors: int) -> tuple[Values, Tensor | None]:
    """METRICS of one update, and its first right singular vectors."""
    update = (trained - source).float()
    found = decompose(update, vectors)
    measured = spectrum.spectral(found, float(update.double().square().sum()))
    return measured | principal.principal(update, start, _top(trained.float())), found.right


def _top(matrix: Tensor) -> Decomposition:
    return decompose(matrix, principal.most_directions(min(matrix.shape)))
