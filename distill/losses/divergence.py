"""Divergences between student and teacher over the vocabulary: logits in, one value per position out.

Shapes: ``V`` vocabulary. Every function maps student and teacher ``[..., V]`` to ``[...]`` in nats, without reduction,
mask or weight. The inside is fp32 (fp64 stays fp64) whatever the logits' dtype. ``normalised=True`` promises that both
arguments are log-probabilities in that dtype already, so that a caller who needs them elsewhere normalises once.

Logits may be -inf (a masked vocabulary): a token with probability 0 contributes 0, to the gradient too. A KL is +inf,
unclamped, where its first argument has mass and its second has none; JSD, skew KL and total variation stay finite.

>>> reverse_kl(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
tensor([0.3278])
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distill.errors import UserError

BETA_RANGE = "strictly between 0 and 1 (jsd tends to 0 at both ends; use forward_kl or reverse_kl there)"
ALPHA_RANGE = "at least 0 and below 1 (skew KL is the plain KL at 0 and vanishes at 1)"


def forward_kl(student: Tensor, teacher: Tensor, *, normalised: bool = False) -> Tensor:
    """KL(p_T‖p_S), mode covering. Raises ValueError when the shapes differ."""
    student, teacher = log_probs_of_both(student, teacher, normalised)
    return kl(teacher, student)


def reverse_kl(student: Tensor, teacher: Tensor, *, normalised: bool = False) -> Tensor:
    """KL(p_S‖p_T), mode seeking; the default of on-policy distillation. Raises ValueError when the shapes differ."""
    student, teacher = log_probs_of_both(student, teacher, normalised)
    return kl(student, teacher)


def jsd(student: Tensor, teacher: Tensor, beta: float, *, normalised: bool = False) -> Tensor:
    """Generalised Jensen-Shannon divergence beta·KL(p_T‖M) + (1-beta)·KL(p_S‖M), M = beta·p_T + (1-beta)·p_S.

    Source: GKD, arXiv 2306.13649. JSD/beta → forward KL as beta → 0 and JSD/(1-beta) → reverse KL as beta → 1, but
    JSD itself goes to 0 at both ends, so they are refused: ValueError, also when the shapes differ.
    """
    if not 0 < beta < 1:
        raise UserError("beta", beta, BETA_RANGE)
    student, teacher = log_probs_of_both(student, teacher, normalised)
    mixture = log_mixture(teacher, student, beta)
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def skew_forward_kl(student: Tensor, teacher: Tensor, alpha: float, *, normalised: bool = False) -> Tensor:
    """KL(p_T ‖ alpha·p_T + (1-alpha)·p_S), at most log(1/alpha). Source: DistiLLM, arXiv 2402.03898.

    Raises ValueError when alpha is outside [0, 1) or the shapes differ.
    """
    _check_alpha(alpha)
    student, teacher = log_probs_of_both(student, teacher, normalised)
    return kl(teacher, log_mixture(teacher, student, alpha))


def skew_reverse_kl(student: Tensor, teacher: Tensor, alpha: float, *, normalised: bool = False) -> Tensor:
    """KL(p_S ‖ (1-alpha)·p_T + alpha·p_S), at most log(1/alpha). Source: DistiLLM, arXiv 2402.03898.

    Raises ValueError when alpha is outside [0, 1) or the shapes differ.
    """
    _check_alpha(alpha)
    student, teacher = log_probs_of_both(student, teacher, normalised)
    return kl(student, log_mixture(student, teacher, alpha))


def total_variation(student: Tensor, teacher: Tensor, *, normalised: bool = False) -> Tensor:
    """½·Σ|p_S - p_T|, in [0, 1]. Raises ValueError when the shapes differ."""
    student, teacher = log_probs_of_both(student, teacher, normalised)
    return 0.5 * (student.exp() - teacher.exp()).abs().sum(-1)


def log_probs(logits: Tensor) -> Tensor:
    """Log-softmax over the last dimension in fp32, or fp64 for fp64 logits."""
    return torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))


def log_probs_of_both(student: Tensor, teacher: Tensor, normalised: bool = False) -> tuple[Tensor, Tensor]:
    """Checks that two ``[..., V]`` agree in shape and normalises them, unless they are ``normalised``."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have the same shape [..., V], "
            f"but are {list(student.shape)} and {list(teacher.shape)}."
        )
    return (student, teacher) if normalised else (log_probs(student), log_probs(teacher))


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ p·(log p - log q) over the last dimension of log-probabilities that need not sum to 1."""
    p = log_p.exp()
    # Filled before the product, because 0·inf is NaN, in the backward pass even where a later mask drops it.
    difference = (log_p - log_q).masked_fill(p == 0, 0.0)
    return (p * difference).sum(-1)


def log_mixture(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    """log(weight·p + (1-weight)·q), elementwise and safe where both are 0; ``weight`` in [0, 1)."""
    a = log_p + (math.log(weight) if weight > 0 else -math.inf)
    b = log_q + math.log1p(-weight)
    dead = torch.isneginf(a) & torch.isneginf(b)
    # logaddexp(-inf, -inf) has a NaN gradient, hence the detour over 0.
    return torch.logaddexp(a.masked_fill(dead, 0.0), b.masked_fill(dead, 0.0)).masked_fill(dead, -math.inf)


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha < 1:
        raise UserError("alpha", alpha, ALPHA_RANGE)
