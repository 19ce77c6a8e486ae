"""Everything that is measured of one tensor: its update, and as many structureless updates of the same size.

θ₀ is the source tensor, θ the trained one, Δ = θ - θ₀, each in both precisions of :mod:`distill.analysis.sparsity`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from distill.analysis.concentration import Packed, magnitudes
from distill.analysis.decompose import MAX_EXACT_DIM, Decomposition, decompose
from distill.analysis.nulls import random_update
from distill.analysis.overlap import Shared, shared
from distill.analysis.principal import most_directions, principal
from distill.analysis.regions import Coverage, coverage, regions
from distill.analysis.sparsity import PRECISIONS, Counts, Pair, compare
from distill.analysis.spectrum import spectral

DTYPES = dict(zip(PRECISIONS, (torch.bfloat16, torch.float32), strict=True))
T = TypeVar("T")
POINTS = 64
"""Singular values kept for a plot of the spectrum."""


@dataclass(frozen=True)
class Options:
    """``draws``: null updates per tensor; ``spectral``: measure matrices' spectra, subspaces and coordinate masks."""

    seed: int = 0
    draws: int = 3
    spectral: bool = True
    max_exact_dim: int = MAX_EXACT_DIM


@dataclass(frozen=True)
class Part:
    """One update in one precision. Counts add up over tensors, ``matrix`` metrics are averaged over matrices.

    ``coverage`` is None for what is no matrix, ``shared`` without another run. ``spectrum`` are up to POINTS singular
    values of Δ over the largest, evenly spaced; ``error`` the largest of the decompositions behind it all.
    """

    counts: Counts
    top: Packed
    coverage: Coverage | None
    shared: Shared | None
    matrix: dict[str, float]
    spectrum: tuple[float, ...]
    error: float


Parts = dict[str, Part]
"""By precision."""


@dataclass(frozen=True)
class Measured:
    """A tensor's update and the null's draws."""

    observed: Parts
    draws: tuple[Parts, ...]

    @property
    def finite(self) -> bool:
        return all(part.counts.finite for part in self.observed.values())


def measure(name: str, source: Tensor, trained: Tensor, other: Tensor | None, options: Options) -> Measured:
    """Measures one tensor on its device; all three have one shape, which may be that of a scalar or empty.

    A tensor with NaN or infinity is counted and nothing else: :attr:`Measured.finite` is False then.
    """
    counts = compare(source, trained)
    if not all(part.finite for part in counts.values()):
        nothing = Packed(*(torch.empty(0, dtype=dtype) for dtype in (torch.int16, torch.int64, torch.float64)))
        return Measured({key: Part(value, nothing, None, None, {}, (), 0) for key, value in counts.items()}, ())
    origin = _Origin(source, options)
    norm = math.sqrt(counts["fp32"].update_energy)
    others = 0.0 if other is None else math.sqrt(compare(source, other)["fp32"].update_energy)
    draws = []
    for draw in range(options.draws):
        moved = random_update(name, source, norm, trained.dtype, options.seed, draw)[1]
        second = None
        if other is not None:
            second = random_update(f"{name}/other", source, others, other.dtype, options.seed, draw)[1]
        draws.append(origin.parts(compare(source, moved), moved, second))
    return Measured(origin.parts(counts, trained, other), tuple(draws))


class _Origin:
    """The source tensor, whose decompositions and masks serve every update that is measured against it."""

    def __init__(self, source: Tensor, options: Options) -> None:
        self.source, self.options = source, options
        self.is_matrix = options.spectral and source.ndim == 2 and source.numel() > 0
        self.starts = {key: source.to(dtype).float() for key, dtype in DTYPES.items()} if self.is_matrix else {}
        self.decompositions = _once(self.starts, self._decompose)
        self.codes = _once(self.starts, lambda start, key: regions(start, self.decompositions[key]))

    def parts(self, counts: Pair, trained: Tensor, other: Tensor | None) -> Parts:
        top = magnitudes(self.source, trained)
        both = {} if other is None else _shared(self.source, trained, other)
        ends = {key: trained.to(dtype).float() for key, dtype in DTYPES.items()} if self.is_matrix else {}
        decomposed = _once(ends, self._decompose)
        found = {}
        for key in PRECISIONS:
            head = (counts[key], top[key].packed())
            if not self.is_matrix:
                found[key] = Part(*head, None, both.get(key), {}, (), 0.0)
                continue
            delta = (ends[key] - self.starts[key]).to(DTYPES[key]).float()
            spectrum = decompose(delta, max_exact_dim=self.options.max_exact_dim)
            matrix = spectral(spectrum, float(delta.double().square().sum()))
            matrix |= principal(delta, self.decompositions[key], decomposed[key])
            error = max(each.error for each in (spectrum, decomposed[key], self.decompositions[key]))
            covered = coverage(self.codes[key], delta)
            found[key] = Part(*head, covered, both.get(key), matrix, _points(spectrum), error)
        return found

    def _decompose(self, matrix: Tensor, key: str) -> Decomposition:
        return decompose(matrix, most_directions(min(matrix.shape)), max_exact_dim=self.options.max_exact_dim)


def _once(given: dict[str, Tensor], function: Callable[[Tensor, str], T]) -> dict[str, T]:
    """``function`` of each precision's tensor, called once where both precisions hold the same numbers."""
    found: dict[str, T] = {}
    for key, value in given.items():
        twin = next((other for other in found if torch.equal(given[other], value)), None)
        found[key] = found[twin] if twin is not None else function(value, key)
    return found


def _shared(source: Tensor, trained: Tensor, other: Tensor) -> dict[str, Shared]:
    found = {}
    for key, dtype in DTYPES.items():
        start = source.to(dtype)
        found[key] = shared(*((after.to(dtype) - start).float() for after in (trained, other)))
    return found


def _points(found: Decomposition) -> tuple[float, ...]:
    if not len(found.values) or not found.values[0] > 0:
        return ()
    places = torch.linspace(0, len(found.values) - 1, min(POINTS, len(found.values))).round().long()
    return tuple((found.values[places.to(found.values.device)] / found.values[0]).tolist())
