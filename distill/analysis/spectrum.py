"""How many directions an update has: its singular values in a few numbers (arXiv 2606.13657)."""

from __future__ import annotations

import math

import torch

from distill.analysis.decompose import Decomposition

RANK_LABELS = ("1e-6", "1e-5", "1e-4")
"""Singular values above this share of the largest count towards the rank."""
TOP = (1, 2, 4, 8, 16, 32, 64)
METRICS = (
    *(f"rank_{label}" for label in RANK_LABELS),
    "stable_rank",
    "entropy_rank",
    *(f"spectral_energy_{k}" for k in TOP),
)
"""``rank_T``: #{σ > T·σ₁} as a share of min(m, n); ``stable_rank``: ‖Δ‖_F²/σ₁²; ``entropy_rank``: exp(H(σ/Σσ));
``spectral_energy_k``: Σσ² of the k largest over all of it."""


def spectral(found: Decomposition, energy: float) -> dict[str, float]:
    """METRICS of an update with ΣΔ² = ``energy``; empty for an update of zero.

    An incomplete decomposition has no ranks and no entropy: they need every singular value.
    """
    if not energy or not found.values[0] > 0:
        return {}
    values, squares = found.values, found.values.square()
    measured: dict[str, float] = {}
    if found.complete:
        share = values / values.sum()
        measured = {
            f"rank_{label}": int((values > float(label) * values[0]).count_nonzero()) / len(values)
            for label in RANK_LABELS
        }
        measured["entropy_rank"] = math.exp(-float(torch.special.xlogy(share, share).sum()))
    measured["stable_rank"] = energy / float(squares[0])
    upto = (squares.cumsum(0) / energy).clamp(max=1)
    return measured | {f"spectral_energy_{k}": float(upto[min(k, len(upto)) - 1]) for k in TOP}
