"""Feature terms of ADM (arXiv 2503.06685): consensus for a student, divergence for a teacher that is trained with it.

**Our formulation**: the paper's losses are not public. Student and teacher describe the same locations (of a feature
map, or token positions), and S is the cosine of a location's two descriptions, without gradients (of
:func:`directions`, which do without those that say nothing). A student is drawn to
the teacher where they agree most already, a teacher is pushed off the student where they agree least:

    consensus_j = w_j·(1 − cos(a_S, sg a_T)),             w = softmax(S/τ)  over the locations of a sample
    divergence_j = w_j·relu(cos(a_T, sg a_S) − m),        w = softmax(−S/τ)

Shapes: ``L`` locations of all samples together, ``D`` width; ``sample`` int64 ``[L]`` says whose a location is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

FLOOR = 1e-3
"""Of a sample's usual length: locations much shorter have no direction."""

OTHERS = 256
"""Locations of a sample that each of them is related to, at most."""
UNRELATED = 0.1
"""Of a location's cosines to all others: where their length is below, none of them says anything."""


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
    """Of each location's two :func:`directions`: ``[L, D]`` and ``[L, D]`` → ``[L]``."""
    return (one * other).sum(-1)


def directions(features: Tensor, length: Tensor, least: float = 0.0) -> Tensor:
    """``[L, D]`` → ``[L, D]``, each location nearly of length 1: x / √(‖x‖² + (:data:`FLOOR`·``length``)²).

    ``length`` ``[L]`` is what is usual in the location's sample (:func:`usual`). A location far below it says nothing,
    and has no direction: exact cosines would have gradients without a bound there, as on a blank image. ``least`` is
    what x is divided by at least.
    """
    floor = torch.where(length > 0, (FLOOR * length).square(), 1.0)
    return features * torch.rsqrt((features.square().sum(-1) + floor).clamp(min=least**2))[:, None]


def usual(features: Tensor, sample: Tensor, count: int) -> Tensor:
    """Root mean square length of the locations of each location's sample, ``[L, D]`` → ``[L]``, without a gradient."""
    energy = features.detach().square().sum(-1)
    return (energy.new_zeros(count).index_add(0, sample, energy) / _sizes(energy, sample, count)).sqrt()[sample]


def share(scores: Tensor, sample: Tensor, count: int, temperature: float | None) -> Tensor:
    """Softmax of ``scores / temperature`` over the locations of each sample: ``[L]`` → ``[L]``."""
    scaled = torch.zeros_like(scores) if temperature is None else scores / temperature
    highest = scaled.new_full((count,), -torch.inf).scatter_reduce(0, sample, scaled, "amax")
    raised = (scaled - highest[sample]).exp()
    return raised / raised.new_zeros(count).index_add(0, sample, raised)[sample]


def centred(features: Tensor, sample: Tensor, count: int) -> Tensor:
    """Each location less the mean of its sample, ``[L, D]`` → ``[L, D]``: what is everywhere the same drops out."""
    sums = features.new_zeros(count, features.shape[1]).index_add(0, sample, features)
    return features - (sums / _sizes(features, sample, count)[:, None])[sample]


def relations(directions: Tensor, sample: Tensor, count: int) -> Tensor:
    """Each location's cosines to the others of its sample, ``[L, D]`` → ``[L, N]``, N locations of the largest sample.

    Alike for networks of any widths, whichever way their channels are turned (as relational and similarity-preserving
    distillation have it of samples, arXiv 1904.05068, 1907.09682). Of a smaller sample the last columns are 0, as is
    what a location is to itself. In a sample of more than :data:`OTHERS` as many, evenly spread, stand for all others,
    so that memory does not grow with the square of a text. ``sample`` must not decrease. Nothing is rounded to what
    autocast would have it.
    """
    sizes = torch.bincount(sample, minlength=count)
    starts = sizes.cumsum(0) - sizes
    place = torch.arange(len(sample), device=sample.device) - starts[sample]
    padded = directions.new_zeros(count, int(sizes.max()), directions.shape[1])
    padded = padded.index_put((sample, place), directions)
    number = torch.arange(min(padded.shape[1], OTHERS), device=sample.device)
    # Of a sample that is smaller, places past its end, which are 0.
    others = torch.where(sizes[:, None] > OTHERS, number * sizes[:, None] // OTHERS, number)
    with torch.autocast(sample.device.type, enabled=False):
        cosines = padded @ padded[torch.arange(count, device=sample.device)[:, None], others].mT
    return cosines[sample, place].masked_fill(others[sample] == place[:, None], 0)


def pooled(features: Tensor, width: int) -> Tensor:
    """``[L, D]`` → ``[L, width]``: means over neighbouring channels, so that widths agree without a projection."""
    return features if features.shape[1] == width else features @ averaging(features.shape[1], width, features).T


def averaging(size: int, parts: int, like: Tensor) -> Tensor:
    """``[parts, size]``: the rows take the mean over each of ``parts`` neighbourhoods, as adaptive pooling has them.

    As a product with a matrix, which has a deterministic gradient on a GPU; adaptive pooling has none.
    """
    places = torch.arange(size)
    starts, ends = ((torch.arange(parts) * size) // parts, -((-(torch.arange(parts) + 1) * size) // parts))
    inside = ((places >= starts[:, None]) & (places < ends[:, None])).to(torch.float64)
    return (inside / inside.sum(1, keepdim=True)).to(like)


def _sizes(like: Tensor, sample: Tensor, count: int) -> Tensor:
    """Locations of each sample, at least 1, ``[count]``."""
    return torch.bincount(sample, minlength=count).clamp(min=1).to(like)
