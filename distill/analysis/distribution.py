"""How the sizes of an update are spread, from counts by exponent that add over tensors and ranks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

_FIRST, _LAST = -40, 1
_BIAS = 127


@dataclass(frozen=True)
class Histogram:
    """``counts`` of the coordinates with ``edges[i]`` <= abs(Δ) < ``edges[i + 1]``, powers of two, and ``zeros`` at 0.

    What is below the first edge (9e-13) or above the last counts in the bin next to it.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    zeros: int


def histogram(octaves: Tensor) -> Histogram:
    """The histogram of one precision from its row of ``analysis.sparsity.compare``'s ``octaves``, int64 ``[256]``."""
    bins = octaves[_FIRST + _BIAS : _LAST + _BIAS].clone()
    bins[0] += octaves[1 : _FIRST + _BIAS].sum()
    bins[-1] += octaves[_LAST + _BIAS :].sum()
    edges = tuple(2.0**power for power in range(_FIRST, _LAST + 1))
    return Histogram(edges, tuple(bins.tolist()), int(octaves[0]))
