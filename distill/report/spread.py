"""How far seeds spread: mean, standard deviation and interval of a few values, and of paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
_ANGLES = 200_001


@dataclass(frozen=True)
class Spread:
    """``sd`` (n − 1 in the denominator) and ``half``, half the width of the 95 % interval of the mean by Student's t,
    are None for a single value."""

    n: int
    mean: float
    sd: float | None
    half: float | None

    @property
    def low(self) -> float | None:
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        return None if self.half is None else self.mean + self.half


def spread(values: Sequence[float]) -> Spread | None:
    """Of independent values, None without any."""
    if not values:
        return None
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return Spread(1, mean, None, None)
    sd = statistics.stdev(values)
    return Spread(n, mean, sd, t_quantile(n - 1) * sd / math.sqrt(n))


def paired(left: Mapping[int | str, float], right: Mapping[int | str, float]) -> Spread | None:
    """Of the differences left − right over the seeds (keys) that both have, None when they share fewer than two."""
    seeds = [seed for seed in left if seed in right]
    return spread([left[seed] - right[seed] for seed in seeds]) if len(seeds) > 1 else None


def verdict(difference: Spread) -> str:
    """What the interval of a difference of two pairs or more allows to say."""
    assert difference.half is not None
    if difference.mean == difference.half == 0:
        return "no difference in any pair"
    return "interval includes 0" if abs(difference.mean) <= difference.half else "interval excludes 0"


def t_quantile(freedom: int) -> float:
    """t with P(|T| ≤ t) = 0.95 for Student's T with ``freedom`` ≥ 1 degrees of freedom.

    With T = √ν·tan φ the density of φ is proportional to cos^(ν−1) φ, which a sum over [0, π/2] integrates.
    """
    angles = np.linspace(0, math.pi / 2, _ANGLES)
    density = np.cos(angles) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(math.sqrt(freedom) * math.tan(np.interp(CONFIDENCE, mass / mass[-1], angles)))
