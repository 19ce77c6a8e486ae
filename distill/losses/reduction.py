"""KD as partial variance reduction (arXiv 2305.17581): SGD's gradient, freed of a share of a teacher's.

    x⁺ = x − γ·(∇f_ξ(x) − λ·∇f_ξ(θ))                 biased: λ·∇f(θ) is missing
    x⁺ = x − γ·(∇f_ξ(x) − λ·(∇f_ξ(θ) − ∇f(θ)))       unbiased; with λ = 1 and θ ← x now and then, SVRG

f is the whole objective, its ℓ2 term included. For models linear in their parameters, cross-entropy and no ℓ2 term the
first is the gradient of (1 − λ)·CE + λ·KD, KD the forward KL at temperature 1; at other temperatures it is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def corrected(gradient: Tensor, reference: Tensor, weight: float | Tensor, mean: Tensor | None = None) -> Tensor:
    """∇f_ξ(x), ∇f_ξ(θ) and, for the unbiased form, ∇f(θ), all of one shape → the direction of a step.

    >>> corrected(torch.tensor(3.0), torch.tensor(2.0), 0.5)
    tensor(2.)
    >>> corrected(torch.tensor(3.0), torch.tensor(2.0), 0.5, mean=torch.tensor(1.0))
    tensor(2.5000)
    """
    return gradient + slope(reference, weight, mean)


def slope(reference: Tensor, weight: float | Tensor, mean: Tensor | None = None) -> Tensor:
    """What is added to ∇f_ξ(x): −λ·∇f_ξ(θ), and λ·∇f(θ) for the unbiased form."""
    return -weight * (reference if mean is None else reference - mean)


def pull(parameters: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
    """A scalar whose gradient in ``parameters`` is ``slopes``: Σ⟨v, x⟩, to be added to a loss.

    So what is added to a gradient is accumulated, averaged over ranks and scaled as the rest of it.
    """
    terms = [(held.detach() * parameter).sum() for parameter, held in zip(parameters, slopes, strict=True)]
    return torch.stack(terms).sum()


def predicted_weight(step: float, curvature: float, product: float, square: float, bias: float) -> float:
    """The paper's λ* of the biased form: γ·E⟨∇f_ξ(x*), ∇f_ξ(θ)⟩ / (γ·E‖∇f_ξ(θ)‖² + ‖∇f(θ)‖²/μ).

    ``step`` γ, ``curvature`` μ, ``product`` and ``square`` the two expectations, ``bias`` ‖∇f(θ)‖². With the
    least curvature it is far below the best λ of softmax regression (docs/kd_variance.md).
    """
    return step * product / (step * square + bias / curvature)
