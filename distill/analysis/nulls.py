"""What rounding alone does: a structureless update of the same size, stored as the trained checkpoint is.

Changes below half a bfloat16 step vanish, so a random update too looks sparse, touches small weights most and has full
rank. A finding is what exceeds this null.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from distill.analysis.sparsity import Pair, compare

TOLERANCE, ROUNDS = 2e-3, 20
SAMPLE = 1 << 20
"""Coordinates by which the size of the noise is searched for, before it is tried on all of them."""


def rounding_null(name: str, source: Tensor, update_norm: float, dtype: torch.dtype, seed: int, draw: int = 0) -> Pair:
    """Counts of ``source`` plus Gaussian noise, stored as ``dtype``, against ``source``."""
    return compare(source, random_update(name, source, update_norm, dtype, seed, draw)[1])


def random_update(
    name: str, source: Tensor, update_norm: float, dtype: torch.dtype, seed: int, draw: int = 0
) -> tuple[Tensor, Tensor]:
    """Standard Gaussian noise (fp32), and ``source`` plus that noise scaled, stored as ``dtype``; both of its shape.

    The noise is added in fp32 and rounded to ``dtype``, the precision the trained checkpoint is stored in; its size is
    such that the difference, as stored, has the norm ``update_norm`` (the fp32 row's) to TOLERANCE. The noise is a
    function of (``seed``, ``name``, ``draw``) alone, and on the CPU whatever the device of ``source``.
    """
    noise = _noise(name, source.shape, seed, draw).to(source.device)
    start = source.detach().float()
    return noise, _moved(start, noise, _scale(start, noise, update_norm, dtype), dtype)


def _noise(name: str, shape: torch.Size, seed: int, draw: int) -> Tensor:
    text = f"{seed}/{name}" if draw == 0 else f"{seed}/{name}/{draw}"
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(text.encode())))


def _moved(start: Tensor, noise: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    return torch.add(start, noise, alpha=scale).to(dtype)


def _scale(start: Tensor, noise: Tensor, update_norm: float, dtype: torch.dtype) -> float:
    norm = math.sqrt(float(noise.double().square().sum()))
    scale = update_norm / norm if norm else 0.0
    if dtype.itemsize >= 4 or scale == 0:
        return scale
    step = -(-start.numel() // SAMPLE)
    for stride in sorted({step, 1}, reverse=True):
        part, into = start.reshape(-1)[::stride], noise.reshape(-1)[::stride]
        target = update_norm / math.sqrt(stride)
        scale = _reach(lambda size, a=part, b=into: _stored_norm(a, b, size, dtype), target, scale)  # type: ignore[misc]
    return scale


def _stored_norm(start: Tensor, noise: Tensor, scale: float, dtype: torch.dtype) -> float:
    return math.sqrt(float((_moved(start, noise, scale, dtype).float() - start).double().square().sum()))


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
