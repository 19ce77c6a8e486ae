"""What rounding alone is expected to do: the rounding null without drawing noise, from a histogram of θ₀.

How likely a coordinate stays within a tolerance under Gaussian noise depends on its value in bfloat16 and on nothing
else, but for where a value that is no bfloat16 number lies between two of them. So the expected counts follow from how
often each value occurs. Histograms add over shards, the sums do not depend on the number of ranks, and θ₀ is read
once in a run. :func:`distill.analysis.nulls.rounding_null` draws; the two agree within the spread of its draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from distill.analysis.sparsity import PRECISIONS, TOLERANCES

BUCKETS = 1 << 15
"""Values of abs(θ₀) in bfloat16: its bits without the sign."""
GRIDS = 1 << 9
"""Where a value lies on the grid of stored values: twice its biased exponent, plus 1 for a power of two, below which
the grid is finer than above."""
_FINITE = 0x7F80
"""Buckets of finite values; the next is infinity."""
_BEYOND = 2.0**128
"""What would follow the largest finite number: half the way to it rounds to infinity."""
_TERMS, _BISECTIONS = 12, 50
_PIECE = 1 << 20
"""Coordinates counted at once: many more than there are buckets, few enough to fit beside a model."""
_NARROW = 1e-4
"""A cell this small beside the noise is a point: means over it would be differences of nearly equal numbers."""


@dataclass(frozen=True)
class Profile:
    """How often each value occurs in a stretch of θ₀.

    ``keys`` [n] are buckets, plus BUCKETS where the value is no bfloat16 number itself, ``counts`` [n] coordinates.
    """

    keys: Tensor
    counts: Tensor

    def grids(self) -> Tensor:
        """Coordinates by grid, int64 ``[GRIDS]``: what :func:`noise_scale` needs of all pieces of a tensor together."""
        return torch.bincount(_grid(self.keys), self.counts.double(), GRIDS).round().long()


def profile(source: Tensor) -> Profile:
    """The profile of finite values; of no values it is empty. Everything is on the CPU."""
    counts = torch.zeros(2 * BUCKETS, dtype=torch.int64)
    for values in source.detach().reshape(-1).split(_PIECE):
        single = values.cpu().float()
        rounded = single.bfloat16()
        keys = (rounded.view(torch.int16) & 0x7FFF).int()
        keys += BUCKETS * (rounded.float() != single).int()
        counts += torch.bincount(keys, minlength=len(counts))
    keys = counts.nonzero().flatten()
    return Profile(keys, counts[keys])


def noise_scale(grids: Tensor, update_energy: Tensor, dtype: torch.dtype) -> Tensor:
    """Standard deviation of the noise that, stored as ``dtype``, moves each tensor by its norm: float64 ``[tensors]``.

    ``grids`` [tensors, GRIDS] are those of whole tensors, ``update_energy`` [tensors] ΣΔ² (the fp32 row's). A
    tensor stored in half precision mostly stays where noise is small, so that the noise has to be larger (or, where a
    step of the grid is more than the noise, smaller) than the movement it leaves; fp32 keeps what is added.
    """
    numel = grids.sum(1).clamp(min=1).double()
    plain = (update_energy.double() / numel).sqrt()
    if dtype.itemsize >= 4:
        return plain
    used = grids.sum(0).nonzero().flatten()
    counts, steps = grids[:, used].double(), _steps(used, dtype)
    largest = torch.where(counts > 0, steps[1], 0.0).amax(1) if len(used) else torch.zeros_like(plain)
    low, high = (plain / 2).log(), (largest + 2 * plain).log()
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        sigma = middle.exp()[:, None]
        stored = (_stored_energy(steps[0], sigma) + _stored_energy(steps[1], sigma)) / 2
        short = (counts * stored).sum(1) < update_energy
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return torch.where(update_energy > 0, high.exp(), 0.0)


def expected_within(found: Profile, sigma: float, dtype: torch.dtype) -> Tensor:
    """Expected coordinates within each tolerance, float64 ``[precisions, tolerances]``, under noise of this size.

    bf16: exact, but that values between two bfloat16 numbers are taken as spread evenly. fp32: stored values lie on the
    grid around the source's value, as far as it reaches.
    """
    counts = found.counts.double()
    if sigma == 0 or not len(counts):
        return counts.sum().expand(len(PRECISIONS), len(TOLERANCES))
    buckets, between = found.keys % BUCKETS, found.keys >= BUCKETS
    value, sides = _signed(buckets), [side[:, buckets] for side in _limits()]
    cell = [side[0] for side in sides]
    below, above = (_share_below(side, value, sigma) for side in sides)
    wide = between & (cell[1] - cell[0] > _NARROW * sigma)
    low, high = (side[wide] for side in cell)
    below[:, wide], above[:, wide] = (_mean_below(side[:, wide], low, high, sigma) for side in sides)
    steps = _steps(_grid(found.keys), dtype)[:, None]
    reach = ((_tolerances()[:, None] / steps).floor() + 0.5) * steps
    stays = torch.stack([above - below, torch.erf(reach / (sigma * math.sqrt(2))).mean(0)])
    return (stays * counts).sum(-1)


def _grid(keys: Tensor) -> Tensor:
    # An exact bfloat16 number without a fraction.
    return 2 * ((keys % BUCKETS) >> 7) + ((keys < BUCKETS) & (keys % 128 == 0)).long()


def _share_below(limit: Tensor, value: Tensor, sigma: float) -> Tensor:
    return _normal((limit - value) / sigma)


def _normal(x: Tensor) -> Tensor:
    """The distribution function of the normal distribution: four times as fast as ``torch.special.ndtr``."""
    return torch.erf(x * math.sqrt(0.5)).add_(1).mul_(0.5)


def _mean_below(limit: Tensor, low: Tensor, high: Tensor, sigma: float) -> Tensor:
    """The mean of :func:`_share_below` over values between ``low`` and ``high``."""

    def antiderivative(x: Tensor) -> Tensor:
        return x * _normal(x) + torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)

    area = antiderivative((limit - low) / sigma) - antiderivative((limit - high) / sigma)
    return area * sigma / (high - low)


def _stored_energy(step: Tensor, sigma: Tensor) -> Tensor:
    """The mean square of Gaussian noise rounded to a grid: Σ (k·step)²·P(k) over both signs.

    Where the noise is larger than the grid this is σ² + step²/12 to every digit.
    """
    ratio = step / sigma
    total = torch.zeros_like(ratio)
    for k in range(1, _TERMS + 1):
        total += (2 * k - 1) * torch.erfc((k - 0.5) * ratio / math.sqrt(2))
    return torch.where(ratio < 0.7, sigma.square() + step.square() / 12, step.square() * total)


def _steps(grid: Tensor, dtype: torch.dtype) -> Tensor:
    """The steps of ``dtype``'s stored values towards 0 and away from it, ``[2, …]``."""
    info = torch.finfo(dtype)
    exponent = torch.stack([(grid >> 1) - grid % 2, grid >> 1]) - 127
    return torch.exp2(exponent.double().clamp(min=math.log2(info.tiny))) * info.eps


def _tolerances() -> Tensor:
    """The fp32 numbers that differences are compared with."""
    return torch.tensor(TOLERANCES, dtype=torch.float32).double()


@cache
def _limits() -> tuple[Tensor, Tensor]:
    """Between which reals a value has to stay for its bfloat16 difference to be within each tolerance.

    float64 ``[tolerances, buckets]`` each; the row of tolerance 0 is the cell of the reals that round to the value.
    """
    start = torch.arange(_FINITE)
    sides = []
    for sign in (-1, 1):
        reach = torch.stack([_farthest(start, sign, tolerance) for tolerance in _tolerances()])
        sides.append((_signed(reach) + _signed(reach + sign)) / 2)
    return sides[0], sides[1]


def _farthest(start: Tensor, sign: int, tolerance: Tensor) -> Tensor:
    """The last bfloat16 number on one side of each of ``start`` whose difference is within ``tolerance``, by bisection.

    Numbers are counted from 0, the n-th negative one is -n.
    """
    near, far = start.clone(), torch.full_like(start, sign * (_FINITE - 1))
    origin = _signed(start).bfloat16()
    while (near != far).any():
        # Rounded towards the far end, so that two neighbours come to an end.
        middle = near + sign * (((far - near).abs() + 1) // 2)
        within = (_signed(middle).bfloat16() - origin).double().abs() <= tolerance
        near, far = torch.where(within, middle, near), torch.where(within, far, middle - sign)
    return near


def _signed(position: Tensor) -> Tensor:
    """The bfloat16 number at a position, as float64."""
    size = position.abs()
    value = size.clamp(max=_FINITE - 1).to(torch.int16).view(torch.bfloat16).double()
    return torch.where(size < _FINITE, value, _BEYOND) * position.sign()
