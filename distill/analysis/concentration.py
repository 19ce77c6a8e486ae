"""How much of an update's energy sits in its largest coordinates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from distill.analysis.sparsity import PRECISIONS, differences, pieces

FRACTIONS = (0.001, 0.01, 0.05)
_BUCKETS = 1 << 15


def _no_counts() -> Tensor:
    return torch.zeros(_BUCKETS, dtype=torch.int64)


def _no_energy() -> Tensor:
    return torch.zeros(_BUCKETS, dtype=torch.float64)


@dataclass(frozen=True)
class Magnitudes:
    """Addable histogram of abs(Δ), one bucket per bfloat16 value (the upper bits of fp32): ``[2¹⁵]`` counts and ΣΔ².

    Exact for bf16 differences, where a bucket holds one value. For fp32 the bucket in which the top share ends is
    taken at its mean energy; its values differ by less than 2⁻⁷, so the error is below 2 % of that one bucket.
    """

    counts: Tensor = field(default_factory=_no_counts)
    energy: Tensor = field(default_factory=_no_energy)

    def __add__(self, other: Magnitudes) -> Magnitudes:
        return Magnitudes(self.counts + other.counts, self.energy + other.energy)

    def top_energy(self, fraction: float) -> float:
        """Share of ΣΔ² in the ceil(``fraction``·N) coordinates of largest abs(Δ); 0 when nothing moved."""
        whole = float(self.energy.sum())
        if whole == 0:
            return 0.0
        counts, energy = self.counts.flip(0), self.energy.flip(0)
        wanted = math.ceil(fraction * int(counts.sum()))
        before = counts.cumsum(0) - counts
        taken = (wanted - before).clamp(min=0).minimum(counts).double()
        return float((energy * taken / counts.clamp(min=1)).sum()) / whole

    def packed(self) -> Packed:
        """The same in a few kilobytes: most buckets are empty."""
        used = self.counts.nonzero().flatten()
        return Packed(used.to(torch.int16), self.counts[used], self.energy[used])


@dataclass(frozen=True)
class Packed:
    """The buckets of :class:`Magnitudes` that are not empty, with their counts and energies."""

    used: Tensor
    counts: Tensor
    energy: Tensor


def unpacked(parts: Iterable[Packed]) -> Magnitudes:
    """The sum of several."""
    whole = Magnitudes()
    for part in parts:
        whole.counts.index_add_(0, part.used.int(), part.counts)
        whole.energy.index_add_(0, part.used.int(), part.energy)
    return whole


def magnitudes(source: Tensor, trained: Tensor) -> dict[str, Magnitudes]:
    """Histograms of one tensor's update by precision. Both tensors must be finite and of one shape."""
    found = {precision: Magnitudes() for precision in PRECISIONS}
    for before, after in pieces(source, trained):
        for histogram, (_, delta) in zip(found.values(), differences(before, after), strict=True):
            buckets = delta.abs().view(torch.int32) >> 16
            energy = delta.double().square()
            histogram.counts.add_(torch.bincount(buckets, minlength=_BUCKETS))
            histogram.energy.add_(torch.bincount(buckets, weights=energy, minlength=_BUCKETS))
    return found
