"""What rounding alone does: the sparsity of a structureless update of the same size.

Changes below half a bfloat16 step vanish, so a random update too looks sparse. A finding is what exceeds this null.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from distill.analysis.sparsity import PIECE, Pair, compare, total_pair

TOLERANCE, ROUNDS = 2e-3, 20


def rounding_null(name: str, source: Tensor, update_norm: float, dtype: torch.dtype, seed: int) -> Pair:
    """Counts of ``source`` plus Gaussian noise, stored as ``dtype``, against ``source``.

    The noise is added in fp32 and rounded to ``dtype``, the precision the trained checkpoint is stored in; its size is
    such that the difference, as stored, has the norm ``update_norm`` (the fp32 row's). The bf16 row rounds to bfloat16
    in any case. A function of (``seed``, ``name``) and the arguments alone.
    """
    scale = _scale(name, source, update_norm, dtype, seed)
    return total_pair(compare(before, after) for before, after in _moved(name, source, scale, dtype, seed))


def random_update(
    name: str, source: Tensor, update_norm: float, dtype: torch.dtype, seed: int
) -> tuple[Tensor, Tensor]:
    """The update behind :func:`rounding_null`: standard Gaussian noise (fp32), and ``source`` plus it as stored.

    Both have the shape of ``source``; the noise is not scaled, so that it orders the coordinates of a still null, too.
    """
    scale = _scale(name, source, update_norm, dtype, seed)
    noise = torch.cat([*_noise(name, source.numel(), seed)])
    after = torch.cat([after for _, after in _moved(name, source, scale, dtype, seed)])
    return noise.reshape(source.shape), after.reshape(source.shape)


def _scale(name: str, source: Tensor, update_norm: float, dtype: torch.dtype, seed: int) -> float:
    norm = math.sqrt(sum(float(noise.double().square().sum()) for noise in _noise(name, source.numel(), seed)))
    scale = update_norm / norm if norm else 0.0
    if dtype.itemsize >= 4 or scale == 0:
        return scale

    def stored(size: float) -> float:
        moved = _moved(name, source, size, dtype, seed)
        return math.sqrt(sum(float((after.double() - before.double()).square().sum()) for before, after in moved))

    return _reach(stored, update_norm, scale)


def _reach(function: Callable[[float], float], target: float, start: float) -> float:
    """Where a growing positive function reaches ``target``: doubling, then false position (Illinois), both in logs."""

    def gap(x: float) -> float:
        value = function(math.exp(x))
        return math.log(value / target) if value else -10.0

    a = b = math.log(start)
    gap_a = gap_b = gap(a)
    step = math.copysign(math.log(2), -gap_a)
    for _ in range(ROUNDS):
        if abs(gap_b) < TOLERANCE or gap_a * gap_b < 0:
            break
        a, gap_a, b = b, gap_b, b + step
        gap_b = gap(b)
    for _ in range(ROUNDS):
        if abs(gap_b) < TOLERANCE or gap_a * gap_b >= 0:
            break
        x = b - gap_b * (b - a) / (gap_b - gap_a)
        gap_x = gap(x)
        a, gap_a = (b, gap_b) if gap_x * gap_b < 0 else (a, gap_a / 2)
        b, gap_b = x, gap_x
    return math.exp(b)


def _moved(name: str, source: Tensor, scale: float, dtype: torch.dtype, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    flat = torch.split(source.detach().reshape(-1), PIECE["cpu"])
    for piece, noise in zip(flat, _noise(name, source.numel(), seed), strict=True):
        yield piece, (piece.float() + scale * noise).to(dtype)


def _noise(name: str, numel: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    # At least once: a tensor without coordinates is one empty piece.
    for start in range(0, max(numel, 1), PIECE["cpu"]):
        yield torch.randn(min(PIECE["cpu"], numel - start), generator=generator)
