"""What rounding alone does: the sparsity of a structureless update of the same size.

Changes below half a bfloat16 step vanish, so a random update too looks sparse. A finding is what exceeds this null.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor

from distill.analysis.sparsity import PIECE, Pair, compare, total_pair


def rounding_null(name: str, source: Tensor, update_norm: float, dtype: torch.dtype, seed: int) -> Pair:
    """Counts of ``source`` + Gaussian noise of norm ``update_norm``, stored as ``dtype``, against ``source``.

    The noise is added in fp32 and rounded to ``dtype``, the precision the trained checkpoint is stored in; the bf16 row
    rounds it to bfloat16 in any case. A function of (``seed``, ``name``) and the arguments alone.
    """
    norm = math.sqrt(sum(float(noise.double().square().sum()) for noise in _noise(name, source.numel(), seed)))
    scale = update_norm / norm if norm else 0.0
    flat = torch.split(source.detach().reshape(-1), PIECE["cpu"])
    return total_pair(
        compare(piece, (piece.float() + scale * noise).to(dtype))
        for piece, noise in zip(flat, _noise(name, source.numel(), seed), strict=True)
    )


def _noise(name: str, numel: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    for start in range(0, numel, PIECE["cpu"]):
        yield torch.randn(min(PIECE["cpu"], numel - start), generator=generator)
