"""Which coordinates an update touched, and controls of the same density (arXiv 2606.13657): tensors in, masks out.

θ₀ are the source weights, θ the trained ones, Δ = θ - θ₀; N coordinates per tensor. A control is a score for every
coordinate and a number of coordinates, those of largest score (:mod:`distill.analysis.select`: exact, ties by
position). All tensors of scores are fp32 and have the shape of the weights.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

import torch
from torch import Tensor

from distill.analysis.decompose import decompose
from distill.analysis.nulls import random_update
from distill.analysis.select import largest, largest_of_all
from distill.analysis.sparsity import PRECISIONS, compare, differences

PRINCIPAL_RANK = 0.1
"""Share of the ranks of θ₀ whose singular directions are its principal part."""

Scores = Callable[[str], Tensor]
"""Scores of a tensor by its name; called several times where a selection goes through the whole model."""

_LARGEST_BITS = 0x7F7FFFFF
"""The bits of the largest finite fp32 number."""


def updated(source: Tensor, trained: Tensor, tolerance: float, precision: str) -> Tensor:
    """m = 1{abs(Δ) > ``tolerance``}, Δ in one of ``analysis.sparsity.PRECISIONS``; a tolerance is the nearest fp32."""
    deltas = dict(zip(PRECISIONS, differences(source.detach(), trained.detach()), strict=True))
    _, delta = deltas[precision]
    mask: Tensor = delta.abs() > torch.tensor(tolerance, dtype=torch.float32)
    return mask


def low(source: Tensor) -> Tensor:
    """Scores of the coordinates of smallest abs(θ₀)."""
    return -source.detach().float().abs()


def random(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Scores without any structure: uniform numbers, a function of (``seed``, ``name``)."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"mask/{seed}/{name}".encode()))
    return torch.rand(shape, generator=generator)


def principal_part(source: Tensor) -> tuple[Tensor, Tensor]:
    """U_kΣ_k ``[m, k]`` and V_k ``[n, k]``, k = max(1, int(PRINCIPAL_RANK·min(m, n))), of θ₀ as a matrix ``[m, n]``.

    A tensor of more dimensions is the matrix of its first against all others. What has fewer is a matrix of one row,
    so that its principal part is itself.
    """
    values = source.detach().float()
    matrix = values.reshape(1, -1) if values.dim() < 2 else values.flatten(1)
    rank = min(matrix.shape)
    k = min(rank, max(1, int(PRINCIPAL_RANK * rank)))
    if not k:
        return matrix.new_zeros(matrix.shape[0], 0), matrix.new_zeros(matrix.shape[1], 0)
    found = decompose(matrix, k)
    assert found.left is not None
    assert found.right is not None
    return (found.left * found.values[:k]).float(), found.right.float()


def principal(part: tuple[Tensor, Tensor], shape: tuple[int, ...]) -> Tensor:
    """Scores of the largest coordinates of a tensor's principal part: abs(U_kΣ_kV_kᵀ)."""
    left, right = part
    return (left @ right.T).abs().reshape(shape)


def rounding_null(name: str, source: Tensor, trained: Tensor, seed: int, tolerance: float, precision: str) -> Tensor:
    """Scores of a random update of the size of Δ: what moves under it once it is stored, the largest steps first.

    The update is that of :func:`distill.analysis.nulls.rounding_null`. Behind the coordinates that move by more than
    ``tolerance`` come those that do not, again by the size of the noise.
    """
    norm = math.sqrt(compare(source, trained)["fp32"].update_energy)
    noise, after = random_update(name, source, norm, trained.dtype, seed)
    return preferred(updated(source, after, tolerance, precision), noise.abs())


def preferred(members: Tensor, scores: Tensor) -> Tensor:
    """Scores under which all of ``members`` come before all others; ``scores`` >= 0 order each of the two, exactly."""
    # The bits of floats >= 0 grow with them, those of floats < 0 fall: reflected, the order is kept below zero.
    reflected = (_LARGEST_BITS - scores.float().view(torch.int32)).view(torch.float32)
    return torch.where(members, scores, -reflected)


def count(density: float, numel: int) -> int:
    """ceil(``density``·N), of the density as it is written: 7 % of 100 are 7, though 0.07·100 > 7 in floating point."""
    return math.ceil(Decimal(repr(density)) * numel)


def select(scores: Scores, counts: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
    """Masks of exactly ``counts`` coordinates per tensor."""
    for name, count in counts.items():
        yield name, largest(scores(name), count)


def select_globally(scores: Scores, names: Iterable[str], count: int) -> Iterator[tuple[str, Tensor]]:
    """Masks of exactly ``count`` coordinates in all, wherever in the model they are; ties go to the first tensors."""
    names = list(names)
    return zip(names, largest_of_all(lambda: (scores(name) for name in names), count), strict=True)


@dataclass(frozen=True)
class Overlap:
    """Addable counts of two masks over the same coordinates.

    ``expected`` is what two masks of these densities share by chance, Σ first·second/N over the tensors.
    """

    numel: int = 0
    first: int = 0
    second: int = 0
    both: int = 0
    expected: float = 0.0

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(
            self.numel + other.numel,
            self.first + other.first,
            self.second + other.second,
            self.both + other.both,
            self.expected + other.expected,
        )


def overlap(first: Tensor, second: Tensor) -> Overlap:
    """Counts of one tensor's two masks."""
    one, two = int(torch.count_nonzero(first)), int(torch.count_nonzero(second))
    both, numel = int(torch.count_nonzero(first & second)), first.numel()
    return Overlap(numel, one, two, both, one * two / numel if numel else 0.0)
