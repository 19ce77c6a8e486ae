"""Rows are the dataset's own images, changed at random where that is asked for: the label stays true.

``C`` channels, ``X`` by ``Y`` pixels. Written in torch alone: torchvision is not needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional

from distill.images import ImageRow, ImageSample
from distill.rollouts.seeds import row_seed, uniforms


@dataclass(frozen=True)
class Augmentation:
    """``pad``: black pixels put around an image, of which a window of its own size is cut out again at random;
    ``flip``: whether half of the images are mirrored left to right."""

    pad: int = 0
    flip: bool = False

    def __call__(self, pixels: Tensor, draws: tuple[float, float, float]) -> Tensor:
        """``[C, X, Y] → [C, X, Y]``; ``draws`` in [0, 1) place the window, down and right, and decide on mirroring."""
        if self.pad > 0:
            top, left = (int(draw * (2 * self.pad + 1)) for draw in draws[:2])
            padded = functional.pad(pixels, (self.pad,) * 4)
            pixels = padded[:, top : top + pixels.shape[1], left : left + pixels.shape[2]]
        return pixels.flip(-1) if self.flip and draws[2] < 0.5 else pixels


class ImageRollout:
    """The images of a step, each changed by what (seed, step, sample, copy) alone say: the same after a resume, and on
    any number of processes."""

    on_policy = False

    def __init__(self, seed: int, change: Augmentation | None = None) -> None:
        self.seed, self.change = seed, change

    def __call__(self, samples: list[ImageSample], copies: list[int], step: int) -> list[ImageRow]:
        pairs = zip(samples, copies, strict=True)
        return [ImageRow(sample.id, self._changed(sample, copy, step), sample.label) for sample, copy in pairs]

    def _changed(self, sample: ImageSample, copy: int, step: int) -> Tensor:
        if self.change is None:
            return sample.pixels
        seeds = np.array([row_seed(self.seed, step, sample.id, copy)], dtype=np.uint64)
        first, second, third = (float(uniforms(seeds, number)[0]) for number in range(3))
        return self.change(sample.pixels, (first, second, third)).contiguous()
