"""Scenes: coloured shapes over each other on a patterned ground, with a mask that is exact by construction.

A scene is a function of seed, number and size alone: the same on every machine, rank and worker, and after a resume.
``S`` height and width of a scene.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

CLASSES = ("ground", "disc", "square", "triangle", "ring", "cross")
SIZE = 32
FEWEST, MOST = 2, 4
"""Shapes of a scene."""
NOISE = 0.05
"""Standard deviation of what is added to every value in the end."""


def scene(seed: int, number: int, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Pixels fp32 ``[3, S, S]`` in [0, 1] and mask int64 ``[S, S]`` of scene ``number``.

    Its shapes have a radius from S/7 to S/3, any turn and colour, and any centre, so that they are cut off by the edge
    and cover each other: a pixel is of the shape that was painted there last.
    """
    draw = _Draws(seed, number)
    pixels = functional.interpolate(0.5 * draw.tensor(1, 3, 5, 5), size=(size, size), mode="bilinear")[0]
    mask = torch.zeros(size, size, dtype=torch.long)
    rows, columns = torch.meshgrid(*2 * [(torch.arange(size) + 0.5) / size], indexing="ij")
    for _ in range(FEWEST + draw.below(MOST - FEWEST + 1)):
        kind, colour = 1 + draw.below(len(CLASSES) - 1), 0.4 + 0.6 * draw.tensor(3, 1)
        x, y, radius, turn = draw.tensor(4).tolist()
        radius, turn = 1 / 7 + (1 / 3 - 1 / 7) * radius, 2 * math.pi * turn
        down, right = (rows - x) / radius, (columns - y) / radius
        across = math.cos(turn) * right + math.sin(turn) * down
        along = math.cos(turn) * down - math.sin(turn) * right
        painted = inside(CLASSES[kind], across, along)
        pixels[:, painted], mask[painted] = colour, kind
    return (pixels + NOISE * draw.normal(3, size, size)).clamp(0, 1), mask


def inside(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Whether points are in a shape around the origin, of radius 1. Raises KeyError for a shape without a name."""
    radius, longer, shorter = torch.hypot(x, y), x.abs().maximum(y.abs()), x.abs().minimum(y.abs())
    return {
        "disc": radius < 0.9,
        "square": longer < 0.75,
        "triangle": (y > -0.5) & (y + 3**0.5 * x.abs() < 1),
        "ring": (radius < 1) & (radius > 0.55),
        "cross": (longer < 1) & (shorter < 0.3),
    }[shape]


class _Draws:
    """Random numbers from the raw words of Philox, which numpy keeps fixed for ever."""

    def __init__(self, seed: int, number: int) -> None:
        self._words = np.random.Philox(key=np.array([seed, number], dtype=np.uint64))

    def tensor(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), fp32."""
        words = self._words.random_raw(math.prod(shape))
        return torch.from_numpy(((words >> np.uint64(40)) * 2.0**-24).astype(np.float32)).view(shape)

    def normal(self, *shape: int) -> Tensor:
        """Nearly normal, of variance 1: the centred sum of four uniform draws."""
        return (self.tensor(4, *shape).sum(0) - 2) * 3**0.5

    def below(self, limit: int) -> int:
        return int(self.tensor(1) * limit)
