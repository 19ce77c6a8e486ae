"""KL over the K likeliest tokens of one model, with an explicit convention for the rest of the vocabulary.

Shapes: ``V`` vocabulary, ``K`` tokens kept; ``[..., V] → [...]`` as in :mod:`distill.losses.divergence`. With
p and q the full distributions, and P, Q their mass outside the kept tokens:

- ``bucket``: Σ_kept p·log(p/q) + P·log(P/Q): the KL after merging the rest into one token, so a true KL and a lower
  bound of the full one.
- ``renormalise``: the KL between the distributions restricted to the kept tokens; blind to how much mass they hold.
- ``truncate``: Σ_kept p·log(p/q) only; not a divergence: it can be negative and is not least at p = q.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from distill.errors import UserError
from distill.losses.divergence import kl, log_probs_of_both

Tail = Literal["bucket", "renormalise", "truncate"]
TopKFrom = Literal["teacher", "student"]


class TopK(NamedTuple):
    """``[...]`` each: the loss, and the detached probability mass that either model puts on the kept tokens."""

    value: Tensor
    teacher_mass: Tensor
    student_mass: Tensor


def topk_forward_kl(
    student: Tensor,
    teacher: Tensor,
    k: int,
    *,
    tail: Tail = "bucket",
    topk_from: TopKFrom = "teacher",
    normalised: bool = False,
) -> TopK:
    """KL(p_T‖p_S) over the top-K ids of ``topk_from``; the full forward KL when K ≥ V.

    Raises ValueError when the shapes differ, K < 1, or ``tail`` or ``topk_from`` is unknown.
    """
    student, teacher = log_probs_of_both(student, teacher, normalised)
    student, teacher, masses = _restrict(student, teacher, k, tail, topk_from)
    return TopK(kl(teacher, student), *masses)


def topk_reverse_kl(
    student: Tensor,
    teacher: Tensor,
    k: int,
    *,
    tail: Tail = "bucket",
    topk_from: TopKFrom = "teacher",
    normalised: bool = False,
) -> TopK:
    """KL(p_S‖p_T) over the top-K ids of ``topk_from``; the full reverse KL when K ≥ V. Raises as `topk_forward_kl`."""
    student, teacher = log_probs_of_both(student, teacher, normalised)
    student, teacher, masses = _restrict(student, teacher, k, tail, topk_from)
    return TopK(kl(student, teacher), *masses)


def _restrict(
    student: Tensor, teacher: Tensor, k: int, tail: Tail, topk_from: TopKFrom
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Log-probabilities ``[..., V]`` → those to compare, ``[..., K]`` or with the tail's bucket ``[..., K + 1]``, and
    the masses that teacher and student keep."""
    _check(k, tail, topk_from)
    source = teacher if topk_from == "teacher" else student
    ids = source.detach().topk(min(k, source.shape[-1]), sorted=False).indices
    kept_student, kept_teacher = student.gather(-1, ids), teacher.gather(-1, ids)
    masses = (_log_mass(kept_teacher).exp().detach(), _log_mass(kept_student).exp().detach())
    if tail == "renormalise":
        return _renormalised(kept_student), _renormalised(kept_teacher), masses
    if tail == "bucket":
        kept_student = torch.cat([kept_student, _log_tail(student, ids)], -1)
        kept_teacher = torch.cat([kept_teacher, _log_tail(teacher, ids)], -1)
    return kept_student, kept_teacher, masses


def _log_tail(log_probs: Tensor, ids: Tensor) -> Tensor:
    """Log of the mass outside ``ids``, ``[..., 1]``. Summed over the rest, because 1 - Σ_kept has no correct digit left
    (and no finite logarithm) once the kept mass is within fp32 rounding of 1."""
    return _log_mass(log_probs.scatter(-1, ids, -math.inf)).unsqueeze(-1)


def _renormalised(log_probs: Tensor) -> Tensor:
    total = _log_mass(log_probs).unsqueeze(-1)
    return log_probs - total.masked_fill(torch.isneginf(total), 0.0)


def _log_mass(log_probs: Tensor) -> Tensor:
    """Logsumexp over the last dimension; -inf with a zero (not NaN) gradient where every entry is -inf."""
    dead = torch.isneginf(log_probs).all(-1, keepdim=True)
    return log_probs.masked_fill(dead, 0.0).logsumexp(-1).masked_fill(dead.squeeze(-1), -math.inf)


def _check(k: int, tail: str, topk_from: str) -> None:
    for key, value, allowed in (("tail", tail, get_args(Tail)), ("topk_from", topk_from, get_args(TopKFrom))):
        if value not in allowed:
            raise UserError(key, value, f"one of {', '.join(allowed)}")
    if k < 1:
        raise UserError("k", k, "at least 1")
