"""Where an update lies against the source W = UΣVᵀ: projections on its principal subspaces, their rotation, drift.

ρ is a share of the ranks: k = max(1, int(ρ·min(m, n))) singular directions are principal (arXiv 2606.13657).
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.analysis.decompose import Decomposition

SHARES = ("0.01", "0.05", "0.1", "0.2")
METRICS = (
    *(f"projection_{side}_{share}" for side in ("joint", "left", "right") for share in SHARES),
    *(f"rotation_{side}_{share}" for side in ("left", "right") for share in SHARES),
    "spectral_drift",
    "spectral_drift_per_update",
)
"""``projection_*``: ‖U_kᵀΔV_k‖², ‖U_kᵀΔ‖² and ‖ΔV_k‖² over ‖Δ‖²; ``rotation_*``: the mean of √(1 - cos²θ) over the k
principal angles between the top subspaces of W and W′; ``spectral_drift``: ‖σ(W′) - σ(W)‖ over ‖σ(W)‖, and over ‖Δ‖."""


def directions(share: str, small: int) -> int:
    """k of a matrix with min(m, n) = ``small``."""
    return max(1, int(float(share) * small))


def most_directions(small: int) -> int:
    """The largest k that METRICS need of a matrix with min(m, n) = ``small``, 0 of an empty one."""
    return directions(SHARES[-1], small) if small else 0


def principal(update: Tensor, source: Decomposition, trained: Decomposition) -> dict[str, float]:
    """METRICS of Δ ``[m, n]``; decompositions hold :func:`most_directions` vectors.

    What is undefined is left out: of an update of zero, and of more directions than a matrix has (its rank).
    """
    small = min(update.shape)
    found = projections(update, source) | rotations(source, trained, small)
    if source.complete and trained.complete:
        drift = float(torch.linalg.vector_norm(trained.values - source.values))
        size, norm = (float(torch.linalg.vector_norm(part.double())) for part in (source.values, update))
        found |= {"spectral_drift": drift / size} if size else {}
        found |= {"spectral_drift_per_update": drift / norm} if norm else {}
    return found


def projections(update: Tensor, source: Decomposition) -> dict[str, float]:
    """Shares of ΣΔ² inside the source's principal subspaces, for every share that the source has directions for."""
    assert source.left is not None
    assert source.right is not None
    delta = update.double()
    energy = float(delta.square().sum())
    if not energy:
        return {}
    from_left, from_right = source.left.T @ delta, delta @ source.right
    joint = (from_left @ source.right).square().cumsum(0).cumsum(1)
    left, right = from_left.square().sum(1).cumsum(0), from_right.square().sum(0).cumsum(0)
    found: dict[str, float] = {}
    for share in _defined(source, min(update.shape)):
        last = directions(share, min(update.shape)) - 1
        for side, part in (("joint", joint[last, last]), ("left", left[last]), ("right", right[last])):
            found[f"projection_{side}_{share}"] = float(part) / energy
    return found


def rotations(source: Decomposition, trained: Decomposition, small: int) -> dict[str, float]:
    """How far the top subspaces turned, 0 not at all and 1 to the orthogonal complement."""
    found: dict[str, float] = {}
    shares = [share for share in _defined(source, small) if share in _defined(trained, small)]
    for side in ("left", "right"):
        before, after = getattr(source, side), getattr(trained, side)
        cosines = before.T @ after
        for share in shares:
            k = directions(share, small)
            angles = torch.linalg.svdvals(cosines[:k, :k]).clamp(max=1)
            found[f"rotation_{side}_{share}"] = float((1 - angles.square()).sqrt().mean())
    return found


def _defined(found: Decomposition, small: int) -> list[str]:
    """The shares whose directions belong to singular values that are not zero: any others are as good as any."""
    return [share for share in SHARES if directions(share, small) <= found.rank]
