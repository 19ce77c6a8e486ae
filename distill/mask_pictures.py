"""An image, its mask and a prediction beside each other, as a PNG in a data URI: a report shows it without other files.

``C`` channels, ``X`` by ``Y`` pixels.
"""

from __future__ import annotations

import base64
import colorsys
import io

import torch
from PIL import Image
from torch import Tensor

from distill.images import IGNORED

LARGEST = 128
"""Pixels of the longer side, at most: larger ones are thinned out."""
GAP = 2
WHITE, BLACK = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
GOLDEN = 0.618034
"""The golden section: hues of neighbouring class numbers are far from each other, however many there are."""


def picture(pixels: Tensor, mask: Tensor, guess: Tensor) -> str:
    """Of ``[C, X, Y]`` in [0, 1] and two ``[X, Y]``; class 0 is black, and what has no class white."""
    every = -(-max(mask.shape) // LARGEST)
    parts = [pixels.expand(3, -1, -1), *(_coloured(numbers) for numbers in (mask, guess))]
    parts = [part[:, ::every, ::every] for part in parts]
    gap = torch.ones(3, parts[0].shape[1], GAP)
    joined = torch.cat([parts[0], gap, parts[1], gap, parts[2]], dim=2)
    file = io.BytesIO()
    Image.fromarray((joined * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _coloured(numbers: Tensor) -> Tensor:
    """``[X, Y] → [3, X, Y]``."""
    table = torch.tensor([BLACK, *(_colour(number) for number in range(1, IGNORED)), WHITE])
    return table[numbers].permute(2, 0, 1)


def _colour(number: int) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(number * GOLDEN % 1, 0.75, 0.65 + 0.35 * (number % 2))
