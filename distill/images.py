"""Pictures on their way through training: sample → row → batch, in the places that token sequences have elsewhere.

``B`` images, ``C`` channels, ``X`` by ``Y`` pixels with values in [0, 1], ``N`` targets: the class of each image,
``N = B``, or that of each pixel which has one; ``V`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = 255
"""In a mask: a pixel of no class, which no loss and no measurement counts."""


@dataclass(frozen=True)
class ImageSample:
    """One image ``[C, X, Y]`` (fp32) of a dataset, and the number of its class, or its mask: of each pixel the number
    of its class or :data:`IGNORED`, int64 ``[X, Y]``."""

    id: int
    pixels: Tensor
    label: int | Tensor


@dataclass(frozen=True)
class ImageRow:
    """One image to train on. ``sampler_logprobs`` is there because rows of text have it: no model samples an image."""

    sample_id: int
    pixels: Tensor
    label: int | Tensor
    sampler_logprobs: None = None
    length: int = 1

    @property
    def positions(self) -> int:
        """How many targets it has."""
        return int((self.label != IGNORED).sum()) if isinstance(self.label, Tensor) else 1


@dataclass(frozen=True)
class ImageBatch:
    """One micro-batch: ``pixels`` ``[B, C, X, Y]``, ``labels`` int64 ``[B]``, ``sample_ids`` int64 ``[B]``.

    ``window_positions`` counts the images of the whole optimizer step over all micro-batches and ranks. The rest is
    what training asks of every batch (``types.MicroBatch``).
    """

    pixels: Tensor
    labels: Tensor
    sample_ids: Tensor
    window_positions: int
    on_policy: bool = False
    counts: Mapping[str, int] = field(default_factory=dict)
    teacher_states: Tensor | None = None

    def to(self, device: torch.device | str, **kwargs: Any) -> ImageBatch:
        """Moves every tensor; the name and keywords are those Lightning calls."""
        moved: dict[str, Any] = {
            name: value.to(device, **kwargs) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.pixels,)

    @property
    def targets(self) -> Tensor:
        return self.labels

    @property
    def target_logprobs(self) -> Tensor | None:
        return None

    @property
    def for_teacher(self) -> ImageBatch:
        return self

    @property
    def rows(self) -> Tensor:
        return torch.arange(len(self.labels), device=self.labels.device)

    def select(self, hidden: Tensor) -> Tensor:
        """``[B, H] → [N, H]``: every image is a target."""
        return hidden


class MaskBatch(ImageBatch):
    """A micro-batch whose targets are pixels: ``labels`` are masks, int64 ``[B, X, Y]``; ``window_positions`` counts
    the pixels that have a class."""

    @property
    def targets(self) -> Tensor:
        """Class numbers ``[N]``, image by image and row by row."""
        return self.labels[self.labels != IGNORED]

    @property
    def rows(self) -> Tensor:
        return (self.labels != IGNORED).nonzero()[:, 0]

    def select(self, hidden: Tensor) -> Tensor:
        """Logits ``[B, V, x, y]`` on any grid → ``[N, V]``: scaled to the masks (bilinear, as the models of
        transformers do for their loss), those of pixels without a class left out.

        The classes of a pixel are beside each other from here on, so that no second copy is made where every pixel
        has a class.
        """
        size = self.labels.shape[1:]
        grid = hidden.contiguous(memory_format=torch.channels_last)
        if grid.shape[2:] != size:
            grid = functional.interpolate(grid, size=size, mode="bilinear", align_corners=False)
        rows, valid = grid.permute(0, 2, 3, 1).flatten(0, 2), (self.labels != IGNORED).flatten()
        return rows if bool(valid.all()) else rows[valid]


def collate(rows: list[ImageRow], window_positions: int, on_policy: bool = False) -> ImageBatch:
    """Rows of one shape as a batch; of :class:`MaskBatch` where labels are masks."""
    pixels, ids = torch.stack([row.pixels for row in rows]), torch.tensor([row.sample_id for row in rows])
    labels = torch.stack([torch.as_tensor(row.label) for row in rows])
    kind = MaskBatch if labels.ndim > 1 else ImageBatch
    return kind(pixels, labels, ids, window_positions, on_policy)
