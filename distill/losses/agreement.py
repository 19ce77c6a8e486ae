"""Feature terms of ADM (arXiv 2503.06685): consensus for a student, divergence for a teacher that is trained with it.

**Our formulation**: the paper's losses are not public. Student and teacher describe the same locations (of a feature
map, or token positions), and S is the cosine of a location's two descriptions, without gradients. A student is drawn to
the teacher where they agree most already, a teacher is pushed off the student where they agree least:

    consensus_j = w_j·(1 − cos(a_S, sg a_T)),             w = softmax(S/τ)  over the locations of a sample
    divergence_j = w_j·relu(cos(a_T, sg a_S) − m),        w = softmax(−S/τ)

Shapes: ``L`` locations of all samples together, ``D`` width; ``sample`` int64 ``[L]`` says whose a location is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def consensus(student: Tensor, teacher: Tensor, sample: Tensor, count: int, *, temperature: float | None) -> Tensor:
    """``[L, D]`` and ``[L, D]`` → ``[L]``, whose sum over the locations of each of ``count`` samples lies in [0, 2].

    Nothing reaches the teacher. ``temperature`` is τ; None weighs all locations of a sample alike.
    """
    cosine = similarity(student, teacher.detach())
    return share(cosine.detach(), sample, count, temperature) * (1 - cosine)


def divergence(
    teacher: Tensor, student: Tensor, sample: Tensor, count: int, *, temperature: float | None, margin: float
) -> Tensor:
    """``[L, D]`` and ``[L, D]`` → ``[L]``, whose sum over the locations of each sample lies in [0, 1 − ``margin``].

    Nothing reaches the student; locations whose cosine is below ``margin`` are left alone.
    """
    cosine = similarity(teacher, student.detach())
    return share(-cosine.detach(), sample, count, temperature) * functional.relu(cosine - margin)


def similarity(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of each location's two descriptions: ``[L, D]`` and ``[L, D]`` → ``[L]``, at least fp32; 0 for a zero."""
    wide = torch.promote_types(one.dtype, torch.float32)
    return functional.cosine_similarity(one.to(wide), other.to(wide), dim=-1)


def share(scores: Tensor, sample: Tensor, count: int, temperature: float | None) -> Tensor:
    """Softmax of ``scores / temperature`` over the locations of each sample: ``[L]`` → ``[L]``."""
    scaled = torch.zeros_like(scores) if temperature is None else scores / temperature
    highest = scaled.new_full((count,), -torch.inf).scatter_reduce(0, sample, scaled, "amax")
    raised = (scaled - highest[sample]).exp()
    return raised / raised.new_zeros(count).index_add(0, sample, raised)[sample]


def centred(features: Tensor, sample: Tensor, count: int) -> Tensor:
    """Each location less the mean of its sample, ``[L, D]`` → ``[L, D]``: what is everywhere the same drops out."""
    ones = features.new_zeros(count).index_add(0, sample, features.new_ones(len(sample)))
    means = features.new_zeros(count, features.shape[1]).index_add(0, sample, features) / ones.clamp(min=1)[:, None]
    return features - means[sample]


def pooled(features: Tensor, width: int) -> Tensor:
    """``[L, D]`` → ``[L, width]``: means over neighbouring channels, so that widths agree without a projection."""
    return features if features.shape[1] == width else functional.adaptive_avg_pool1d(features, width)
