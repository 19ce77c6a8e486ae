"""Rows are the dataset's own images, changed at random where that is asked for: the label stays true, and a mask is
changed with its image.

``C`` channels, ``X`` by ``Y`` pixels. Written in torch alone: torchvision is not needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional

from distill.images import IGNORED, ImageRow, ImageSample
from distill.rollouts.seeds import row_seed, uniforms


@dataclass(frozen=True)
class Augmentation:
    """``pad``: black pixels put around an image, of which a window of its own size is cut out again at random;
    ``flip``: whether half of the images are mirrored left to right."""

    pad: int = 0
    flip: bool = False

    def __call__(self, pixels: Tensor, draws: tuple[float, float, float], around: int = 0) -> Tensor:
        """``[C, X, Y] → [C, X, Y]``; ``draws`` in [0, 1) place the window, down and right, and decide on mirroring.

        ``around`` is the value that pads: 0 is black, and of a mask no class.
        """
        if self.pad > 0:
            top, left = (int(draw * (2 * self.pad + 1)) for draw in draws[:2])
            padded = functional.pad(pixels, (self.pad,) * 4, value=around)
            pixels = padded[:, top : top + pixels.shape[1], left : left + pixels.shape[2]]
        return pixels.flip(-1) if self.flip and draws[2] < 0.5 else pixels


class ImageRollout:
    """The images of a step, each changed by what (seed, step, sample, copy) alone say: the same after a resume, and on
    any number of processes."""

    on_policy = False

    def __init__(self, seed: int, change: Augmentation | None = None) -> None:
        self.seed, self.change = seed, change

    def __call__(self, samples: list[ImageSample], copies: list[int], step: int) -> list[ImageRow]:
        return [self._row(sample, copy, step) for sample, copy in zip(samples, copies, strict=True)]

    def _row(self, sample: ImageSample, copy: int, step: int) -> ImageRow:
        if self.change is None:
            return ImageRow(sample.id, sample.pixels, sample.label)
        seeds = np.array([row_seed(self.seed, step, sample.id, copy)], dtype=np.uint64)
        first, second, third = (float(uniforms(seeds, number)[0]) for number in range(3))
        draws = first, second, third
        label = sample.label
        if isinstance(label, Tensor):
            label = self.change(label[None], draws, around=IGNORED)[0].contiguous()
        return ImageRow(sample.id, self.change(sample.pixels, draws).contiguous(), label)
