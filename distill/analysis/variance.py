"""How noisy a step's cross-entropy gradient is, what a teacher's correction takes off, and the λ that follows.

After arXiv 2305.17581. Legend: ``M`` blocks of the samples of one optimizer step, ``r`` numbers per gradient (its
coordinates, or a sketch of them); g and k are gradients of cross-entropy (CE) and of KL(p_T‖p_S) at temperature 1
(KD), d = g - k. Of (1-λ)·CE + λ·KD the gradient is g - λd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from statistics import fmean

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """What each block adds to the gradients of its step; the sums over blocks are the step's own gradients.

    ``ce`` and ``difference`` fp64 ``[M, r]``: g and d, summed over the block's targets and divided by those of the
    whole step. ``counts`` ``[M]``: targets of each block. ``exact``: whether r are the coordinates themselves.
    """

    counts: Tensor
    ce: Tensor
    difference: Tensor
    exact: bool


@dataclass(frozen=True)
class Moments:
    """Of the step's gradients: variances (traces of covariances), products of means, the share λ; all estimates.

    ``ce`` Var g, ``teacher`` Var d, ``covariance`` Cov(g, d), ``bias`` ‖E d‖² (without the noise of d, which makes it
    unbiased, and negative where noise hides it), ``cosine`` of the step's g and k.
    """

    ce: float
    teacher: float
    covariance: float
    bias: float
    cosine: float

    def corrected(self, share: float) -> float:
        """V(λ) = Var(g - λd)."""
        return self.ce - 2 * share * self.covariance + share**2 * self.teacher

    def best(self, horizon: float) -> float:
        """λ in [0, 1] that minimises V(λ) + horizon·λ²·bias; ``horizon`` 0 minimises the variance alone.

        Our formulation: over ``horizon`` steps noise averages out and bias does not, so that the mean of their
        gradients misses the mean of CE's by V(λ)/horizon + λ²·bias. The paper's λ* is that of horizon 1 + 1/(γμ), the
        steps that SGD with rate γ remembers where the loss has curvature μ, for models linear in their parameters,
        whose d is the CE gradient at the teacher.
        """
        return min(max(self.unclamped(horizon), 0.0), 1.0)

    def unclamped(self, horizon: float) -> float:
        """The same λ without its limits: how far beyond them it is. No bias is taken for less than none."""
        weight = self.teacher + (horizon * max(self.bias, 0.0) if horizon else 0.0)
        return self.covariance / weight if weight > 0 else 0.0

    @property
    def correlation(self) -> float:
        """Of the noises of g and d, in [-1, 1]; 1 - its square is what the best λ leaves of an unbiased teacher."""
        scale = (self.ce * self.teacher) ** 0.5
        return self.covariance / scale if scale > 0 else 0.0


def mean(found: Sequence[Moments]) -> Moments:
    """Of several measurements; bias, which may be below 0 in each, is estimated the better the more there are."""
    return Moments(*(fmean(values) for values in zip(*(astuple(one) for one in found), strict=True)))


def moments(blocks: Blocks) -> Moments:
    """Estimates from M ≥ 2 blocks.

    The blocks' residuals from their share of the step's mean gradient, R_b = A_b - w_b·ΣA with w_b the share of the
    targets, give Var = M/(M-1)·Σ⟨R_b, R_b⟩: unbiased for equal counts, the usual linearisation of a ratio otherwise.
    """
    return _of_products(blocks.counts.double(), *_products(blocks))


def spread(blocks: Blocks, horizon: float) -> dict[str, float]:
    """Standard errors over the draw of blocks, by leaving out one at a time (jackknife); M ≥ 3.

    Of ``lambda`` and ``lambda_upper`` (variance alone), both without their limits, where all would be alike, and of
    ``reduction``, V(λ)/V(0) at λ within them.
    """
    counts, products = blocks.counts.double(), _products(blocks)
    found: dict[str, list[float]] = {"lambda": [], "lambda_upper": [], "reduction": []}
    for block in range(len(counts)):
        kept = torch.arange(len(counts)) != block
        some = _of_products(counts, *products, kept)
        best = some.best(horizon)
        found["lambda"].append(some.unclamped(horizon))
        found["lambda_upper"].append(some.unclamped(0))
        found["reduction"].append(some.corrected(best) / some.ce if some.ce > 0 else 1.0)
    scale = (len(counts) - 1) ** 2 / len(counts)
    return {name: float((scale * torch.tensor(values).double().var()) ** 0.5) for name, values in found.items()}


def sketch_error(blocks: Blocks) -> float:
    """Relative standard error of the CE variance by the sketch, from how its buckets disagree; 0 where it is exact."""
    if blocks.exact:
        return 0.0
    shares = blocks.counts.double() / blocks.counts.sum()
    parts = (blocks.ce - shares[:, None] * blocks.ce.sum(0)).square().sum(0)
    return float((len(parts) * parts.var()) ** 0.5 / parts.sum())


def _products(blocks: Blocks) -> tuple[Tensor, Tensor, Tensor]:
    """Gram matrices ``[M, M]``: g with g, g with d, d with d."""
    g, d = blocks.ce, blocks.difference
    return g @ g.T, g @ d.T, d @ d.T


def _of_products(counts: Tensor, gg: Tensor, gd: Tensor, dd: Tensor, kept: Tensor | None = None) -> Moments:
    """From the Gram matrices of all blocks or, scaled to the whole step, of those that are ``kept``."""
    total = counts.sum()
    if kept is not None:
        counts, gg, gd, dd = counts[kept], gg[kept][:, kept], gd[kept][:, kept], dd[kept][:, kept]
    m, grown = len(counts), float(total / counts.sum())
    centre = torch.eye(m, dtype=torch.float64) - (counts / counts.sum())[:, None]

    def variance(products: Tensor) -> float:
        # Fewer targets make a noisier step: one factor of `grown` is the step's own, the other is that of a mean.
        return float((centre @ products @ centre.T).trace()) * m / (m - 1) * grown

    def square(products: Tensor) -> float:
        return float(products.sum()) * grown**2

    teacher = variance(dd)
    gk, kk = square(gg) - square(gd), square(gg) - 2 * square(gd) + square(dd)
    scale = max(square(gg) * kk, 0.0) ** 0.5
    cosine = gk / scale if scale > 0 else 0.0
    return Moments(variance(gg), teacher, variance(gd), square(dd) - teacher * grown, cosine)
