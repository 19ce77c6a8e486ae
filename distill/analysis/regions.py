"""Which weights an update touched: coordinate masks of the source, and how much of the update falls into them.

W = UΣVᵀ is the source, ρ a share of its ranks and of its N coordinates. ``principal``: the top ρ of |U_kΣ_kV_kᵀ|;
``low``: the bottom ρ of |W|; each of exactly ceil(ρN) coordinates, ties by position (arXiv 2606.13657, 2511.08567).
``principal_not_low`` is principal∖low, ``not_principal_or_low`` the union of low and what is not principal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.analysis.decompose import Decomposition
from distill.analysis.principal import SHARES, directions
from distill.analysis.select import largest, smallest_each

MOVED_LABELS = ("0", "1e-5")
"""An update touches a coordinate where abs(Δ) exceeds this."""
REGIONS = ("principal", "low", "principal_not_low", "not_principal_or_low")
METRICS = tuple(
    f"{measure}_{region}_{share}_{label}"
    for measure in ("coverage", "enrichment")
    for region in REGIONS
    for share in SHARES
    for label in MOVED_LABELS
)
"""``coverage``: |mask ∩ touched|/|touched|; ``enrichment``: coverage over the mask's share of all coordinates."""
_CODES = 1 << (2 * len(SHARES))


def regions(source: Tensor, decomposition: Decomposition) -> Tensor:
    """For every coordinate of W ``[m, n]`` the masks it is in, uint8 of that shape.

    Bit i is the principal mask of ``SHARES[i]``, bit i + 4 its low mask. ``decomposition`` is that of ``source``, with
    the directions of the largest share.
    """
    assert decomposition.left is not None
    assert decomposition.right is not None
    counts = [math.ceil(float(share) * source.numel()) for share in SHARES]
    codes = torch.zeros(source.shape, dtype=torch.uint8)
    for bit, mask in enumerate(smallest_each(source.abs(), counts)):
        codes |= mask.byte() << (bit + len(SHARES))
    scaled = (decomposition.left * decomposition.values[: decomposition.left.shape[1]]).float()
    right, part, done = decomposition.right.float(), torch.zeros(source.shape, device=source.device), 0
    for bit, (share, count) in enumerate(zip(SHARES, counts, strict=True)):
        k = directions(share, min(source.shape))
        # The parts of fewer directions are in those of more.
        part.addmm_(scaled[:, done:k], right[:, done:k].T)
        done = k
        codes |= largest(part.abs(), count).byte() << bit
    return codes


@dataclass(frozen=True)
class Coverage:
    """Addable counts of coordinates, int64 ``[1 + len(MOVED_LABELS), codes]``: all of them, then those that moved."""

    counts: Tensor

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(self.counts + other.counts)

    def metrics(self) -> dict[str, float]:
        """METRICS; those of an update that touches nothing, or of a mask without coordinates, are left out."""
        numel, *moved = self.counts.sum(1).tolist()
        found: dict[str, float] = {}
        for region, share, members in _members():
            size, *inside = self.counts[:, members].sum(1).tolist()
            for label, touched, both in zip(MOVED_LABELS, moved, inside, strict=True):
                if touched and size:
                    found[f"coverage_{region}_{share}_{label}"] = both / touched
                    found[f"enrichment_{region}_{share}_{label}"] = (both / touched) / (size / numel)
        return {name: found[name] for name in METRICS if name in found}


def coverage(codes: Tensor, update: Tensor) -> Coverage:
    """Counts of one matrix: :func:`regions` of the source, and Δ in fp32."""
    size, level = update.detach().abs().cpu(), torch.zeros(update.shape, dtype=torch.int32)
    for label in MOVED_LABELS:
        # The tolerances grow, so that what exceeds one exceeds those before it.
        level += size > torch.tensor(float(label), dtype=torch.float32)
    joint = torch.bincount((codes + _CODES * level).reshape(-1), minlength=_CODES * (1 + len(MOVED_LABELS)))
    return Coverage(joint.reshape(-1, _CODES).flip(0).cumsum(0).flip(0))


def _members() -> Iterator[tuple[str, str, Tensor]]:
    """(region, ρ, which of the codes belong to it)."""
    codes = torch.arange(_CODES)
    for bit, share in enumerate(SHARES):
        is_principal, is_low = (codes >> bit & 1).bool(), (codes >> (bit + len(SHARES)) & 1).bool()
        members = (is_principal, is_low, is_principal & ~is_low, ~is_principal | is_low)
        yield from ((region, share, mask) for region, mask in zip(REGIONS, members, strict=True))
