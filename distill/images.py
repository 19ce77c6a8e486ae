"""Pictures on their way through training: sample → row → batch, in the places that token sequences have elsewhere.

``B`` images, ``C`` channels, ``X`` by ``Y`` pixels with values in [0, 1], ``N`` targets: one for each image, ``N = B``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSample:
    """One image ``[C, X, Y]`` (fp32) of a dataset, and the number of its class."""

    id: int
    pixels: Tensor
    label: int


@dataclass(frozen=True)
class ImageRow:
    """One image to train on. ``sampler_logprobs`` is there because rows of text have it: no model samples an image."""

    sample_id: int
    pixels: Tensor
    label: int
    sampler_logprobs: None = None
    length: int = 1
    positions: int = 1


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

    def select(self, hidden: Tensor) -> Tensor:
        """``[B, H] → [N, H]``: every image is a target."""
        return hidden


def collate(rows: list[ImageRow], window_positions: int, on_policy: bool = False) -> ImageBatch:
    """Rows of one shape as a batch."""
    labels = torch.tensor([row.label for row in rows])
    ids = torch.tensor([row.sample_id for row in rows])
    return ImageBatch(torch.stack([row.pixels for row in rows]), labels, ids, window_positions, on_policy)
