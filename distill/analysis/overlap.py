"""Whether two runs from one source moved the same weights (arXiv 2511.08567)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.analysis.regions import MOVED_LABELS

METRICS = tuple(
    f"{measure}_{label}"
    for measure in ("overlap_of_trained", "overlap_of_other", "jaccard", "observed_over_expected")
    for label in MOVED_LABELS
)
"""A and B are the coordinates that ``trained`` and ``other`` moved by more than the tolerance: |A∩B|/|A|, |A∩B|/|B|,
|A∩B|/|A∪B|, and |A∩B| over |A|·|B|/N, what two sets of these densities share by chance."""


@dataclass(frozen=True)
class Shared:
    """Addable counts: int64 ``[tolerances, 3]`` of A, B and A∩B, and N."""

    counts: Tensor
    numel: int

    def __add__(self, other: Shared) -> Shared:
        return Shared(self.counts + other.counts, self.numel + other.numel)

    def metrics(self) -> dict[str, float]:
        """METRICS; what would divide by zero is left out."""
        found: dict[str, float] = {}
        for label, (first, second, both) in zip(MOVED_LABELS, self.counts.tolist(), strict=True):
            if first:
                found[f"overlap_of_trained_{label}"] = both / first
            if second:
                found[f"overlap_of_other_{label}"] = both / second
            if first or second:
                found[f"jaccard_{label}"] = both / (first + second - both)
            if first and second:
                found[f"observed_over_expected_{label}"] = both * self.numel / (first * second)
        return {name: found[name] for name in METRICS if name in found}


def shared(first: Tensor, second: Tensor) -> Shared:
    """Counts of two updates of one tensor, Δ in fp32."""
    rows = []
    for label in MOVED_LABELS:
        threshold = torch.tensor(float(label), dtype=torch.float32)
        one, two = first.abs() > threshold, second.abs() > threshold
        rows.append(torch.stack([torch.count_nonzero(part) for part in (one, two, one & two)]))
    return Shared(torch.stack(rows), first.numel())
