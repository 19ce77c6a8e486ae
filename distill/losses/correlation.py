"""One minus the correlation of student and teacher logits over the vocabulary: what matters is their order and shape.

Source: CMKD, arXiv 2410.06561, of which the abstract alone is known here: the soft ranks, and that they are taken among
the teacher's K likeliest tokens, are our formulation. Shapes as in :mod:`distill.losses.divergence`, ``[..., V] →
[...]``; values in [0, 2]. Neither function sees the scale or the offset of the logits: give the cross-entropy a weight
as well, or the student's confidence is left to chance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distill.errors import UserError
from distill.losses.divergence import log_probs_of_both

SOFTNESS_RANGE = "above 0 (in standard deviations of the logits; smaller is closer to ranks, and has less gradient)"


def pearson(student: Tensor, teacher: Tensor, *, normalised: bool = False) -> Tensor:
    """1 - corr(z_S, z_T). A token that either model has masked (-inf) counts in neither.

    1 where a model's logits are all the same, with a gradient of zero. Raises ValueError when the shapes differ.
    """
    student, teacher = log_probs_of_both(student, teacher, normalised)
    return 1 - _correlation(student, teacher, _used(student, teacher))


def spearman(student: Tensor, teacher: Tensor, k: int, softness: float, *, normalised: bool = False) -> Tensor:
    """1 - corr of soft ranks among the teacher's ``k`` likeliest tokens.

    The soft rank of token i is Σ_j sigmoid((z_i - z_j)/softness) over those tokens, z being their logits with mean 0
    and standard deviation 1; it tends to the rank as ``softness`` goes to 0. Takes memory for k² numbers per position.
    Raises ValueError when the shapes differ, k < 1 or softness ≤ 0.
    """
    if k < 1:
        raise UserError("k", k, "at least 1")
    if not softness > 0:
        raise UserError("softness", softness, SOFTNESS_RANGE)
    student, teacher = log_probs_of_both(student, teacher, normalised)
    ids = teacher.detach().topk(min(k, teacher.shape[-1]), sorted=False).indices
    student, teacher = student.gather(-1, ids), teacher.gather(-1, ids)
    used = _used(student, teacher)
    return 1 - _correlation(_soft_ranks(student, used, softness), _soft_ranks(teacher, used, softness), used)


def _used(student: Tensor, teacher: Tensor) -> Tensor:
    """Tokens that neither model has masked. NaN counts: it is a mistake, and has to show in the loss."""
    return ~(torch.isneginf(student) | torch.isneginf(teacher))


def _soft_ranks(logits: Tensor, used: Tensor, softness: float) -> Tensor:
    """``[..., K]`` → ``[..., K]``: how many of the ``used`` logits each one exceeds, softly."""
    scores = _standardised(logits, used)
    above = torch.sigmoid((scores.unsqueeze(-1) - scores.unsqueeze(-2)) / softness)
    return (above * used.unsqueeze(-2)).sum(-1)


def _standardised(logits: Tensor, used: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the ``used`` entries; 0 elsewhere and where all of them are the same."""
    return _direction(_centred(logits, used)) * used.sum(-1, keepdim=True).to(logits.dtype).sqrt()


def _centred(values: Tensor, used: Tensor) -> Tensor:
    """Minus the mean of the ``used`` entries, 0 elsewhere."""
    # From the largest down, so that equal entries are zeros, with no rounding left to pass for variation.
    values = values - values.detach().masked_fill(~used, -math.inf).amax(-1, keepdim=True)
    # Filled before any product: the gradient of 0·inf is NaN, even where a later mask drops it.
    values = values.masked_fill(~used, 0.0)
    count = used.sum(-1, keepdim=True).clamp(min=1)
    return (values - values.sum(-1, keepdim=True) / count).masked_fill(~used, 0.0)


def _correlation(one: Tensor, other: Tensor, used: Tensor) -> Tensor:
    """Pearson's correlation over the ``used`` entries ``[..., V] → [...]``, 0 where one side does not vary."""
    return (_direction(_centred(one, used)) * _direction(_centred(other, used))).sum(-1)


def _direction(centred: Tensor) -> Tensor:
    """To length 1; a vector of zeros stays one, and has a gradient of zero."""
    energy = centred.square().sum(-1, keepdim=True)
    varies = energy > 0
    return centred * torch.where(varies, energy, 1.0).rsqrt() * varies
