"""Whether an update keeps its directions while it grows: "subspace locking" (arXiv 2606.07082)."""

from __future__ import annotations

from torch import Tensor


def similarity(first: Tensor, last: Tensor) -> float:
    """(1/K)·‖V_K(t)ᵀV_K(end)‖_F² of two orthonormal bases ``[n, K]``: 1 for one subspace, K/n for random ones.

    Raises:
        ValueError: the bases have different shapes.
    """
    if first.shape != last.shape or first.ndim != 2 or not first.shape[1]:
        raise ValueError(f"two bases [n, K] are needed, not {list(first.shape)} and {list(last.shape)}")
    return float((first.double().T @ last.double()).square().sum()) / first.shape[1]
