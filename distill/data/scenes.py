"""Scenes: handwritten digits pasted over each other on a patterned ground, with a mask that is exact by construction.

A scene is a function of seed, number and size alone: the same on every machine, rank and worker, and after a resume.
``S`` height and width of a scene, ``h`` by ``w`` those of a digit in it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

CLASSES = ("background", *map(str, range(10)))
"""By number; a digit's class is its value and one."""
SIZE = 32
MOST = 5
"""Digits of a scene; the fewest are 2."""
INK = 0.4
"""What is darker than this share of a digit's darkest pixel is painted, and of its class; what is not, is neither."""
NOISE = 0.04
"""Standard deviation of what is added to every value in the end."""


def scene(glyphs: Tensor, values: list[int], seed: int, number: int, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Pixels fp32 ``[3, S, S]`` in [0, 1] and mask int64 ``[S, S]`` of scene ``number``, of ``glyphs`` ``[n, 1, X, Y]``
    in [0, 1] whose digits are ``values``.

    From 2 to :data:`MOST` digits, each of a size from 3/8 to 5/8 of S, anywhere, also over the edge and over each other: a
    pixel is of the last digit that was painted there.
    """
    draw = _Draws(seed, number)
    pixels = functional.interpolate(0.5 * draw.tensor(1, 3, 5, 5), size=(size, size), mode="bilinear")[0]
    mask = torch.zeros(size, size, dtype=torch.long)
    for _ in range(2 + draw.below(MOST - 1)):
        chosen, colour = draw.below(len(values)), 0.45 + 0.55 * draw.tensor(3, 1, 1)
        side = 3 * size // 8 + draw.below(size // 4 + 1)
        ink = functional.interpolate(glyphs[chosen][None], size=(side, side), mode="bilinear")[0, 0]
        top, left = (draw.below(size - side // 2) - side // 4 for _ in range(2))
        # What lies over the edge is cut off.
        rows, columns = (slice(max(at, 0), min(at + side, size)) for at in (top, left))
        part = ink[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        painted = part > INK
        pixels[:, rows, columns] = torch.where(painted, colour * part, pixels[:, rows, columns])
        mask[rows, columns] = torch.where(painted, values[chosen] + 1, mask[rows, columns])
    return (pixels + NOISE * draw.normal(3, size, size)).clamp(0, 1), mask


class _Draws:
    """Random numbers from the raw words of Philox, which numpy keeps fixed for ever."""

    def __init__(self, seed: int, number: int) -> None:
        self._words = np.random.Philox(key=np.array([seed, number], dtype=np.uint64))

    def tensor(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), fp32."""
        words = self._words.random_raw(int(np.prod(shape)))
        return torch.from_numpy(((words >> np.uint64(40)) * 2.0**-24).astype(np.float32)).view(shape)

    def normal(self, *shape: int) -> Tensor:
        """Nearly normal, of variance 1: the centred sum of four uniform draws."""
        return (self.tensor(4, *shape).sum(0) - 2) * 3**0.5

    def below(self, limit: int) -> int:
        return int(self.tensor(1) * limit)
