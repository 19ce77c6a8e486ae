"""Labelled images as a dataset: what a source has read, in the size and the channels that are asked for.

``C`` channels, ``X`` by ``Y`` pixels, values in [0, 1]; a label is a class number, or a mask ``[X, Y]`` of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distill.data import image_files, image_sources, mask_files, scenes
from distill.data.base import check_index
from distill.data.image_files import Files
from distill.data.mask_files import Masks
from distill.data.sampler import indices
from distill.data.subset import ORDER, wanted
from distill.errors import UserError
from distill.images import ImageSample

HELD_OUT = 5
"""One image in so many is held out where the source has no part of its own for it."""
SCENES, HELD_OUT_SCENES = 10_000, 1_000
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601), those of Pillow."""


@dataclass(frozen=True)
class Source:
    """What a source has: for each image its label, its pixels ``[C, X, Y]`` when they are asked for, and the names of
    the image and of its mask."""

    classes: tuple[str, ...]
    labels: Sequence[int | Tensor]
    read: Callable[[int], Tensor]
    named: Callable[[int], tuple[str, str]] = image_files.numbered


@dataclass(frozen=True)
class Images:
    """The ``chosen`` images of a source, by the numbers they have there; ``told`` is what the record says of them."""

    source: Source
    chosen: tuple[int, ...]
    channels: int
    size: int | None
    told: Mapping[str, Any]
    name: str = "images"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, X, Y) of the first image, which without ``size`` is that of all."""
        channels, height, width = self[0].pixels.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> ImageSample:
        check_index(index, len(self.chosen))
        number = self.chosen[index]
        raw, label = self.source.read(number), self.source.labels[number]
        pixels = resized(channelled(raw, self.channels), self.size)
        if isinstance(label, Tensor):
            if label.shape != raw.shape[1:]:
                image, mask = self.source.named(number)
                found, wanted = (f"{shape[0]} by {shape[1]}" for shape in (label.shape, raw.shape[1:]))
                told = f"{mask} is {found} pixels, {image} {wanted}, each turned as its own EXIF tag says"
                raise UserError("data.path", mask, f"masks as large as their images ({told})")
            return ImageSample(number, pixels, resized_mask(label, self.size))
        return ImageSample(number, pixels, int(label))

    def describe(self) -> dict[str, Any]:
        return {**self.told, "rows": len(self), "classes": len(self.classes)}


_BUILT: list[tuple[Mapping[str, Any], dict[str, Any], tuple[Images, Images]]] = []
"""The latest sections, what they said, and what was built of them."""


def built(config: Mapping[str, Any]) -> tuple[Images, Images]:
    """:func:`build`, once for a section of a configuration, which student, teacher and loader ask one after the other:
    a large folder takes its time to be walked through. Another configuration is another walk, whatever it says."""
    for section, said, found in _BUILT:
        if section is config and said == config:
            return found
    _BUILT.append((config, dict(config), build(config)))
    del _BUILT[:-2]
    return _BUILT[-1][2]


def build(config: Mapping[str, Any]) -> tuple[Images, Images]:
    """Training and held-out images of the ``data`` section, deterministic in it.

    Held out is what the source has for it, else one image in :data:`HELD_OUT` of a fixed order. ``data.limit`` and
    ``data.fraction`` are of the training images.

    Raises:
        UserError: the source is not there, or not what it should be.
    """
    name = config["source"]
    made: tuple[Source, Source | None, int] = SOURCES[name](config)
    whole, other, channels = made
    asked = {"channels": config["channels"] or channels, "size": config["image_size"]}
    count = len(whole.labels)
    if other is None:
        order = indices(count, ORDER, 0, count)
        kept = count - count // HELD_OUT
        if kept == count:
            raise UserError("data.path", config["path"], f"at least {HELD_OUT} images, one of them held out")
        told = {"source": name, "split": f"one in {HELD_OUT} of {count} held out, in a fixed order"}
        train = Images(whole, tuple(order[:kept]), told=told, **asked)
        held_out = Images(whole, tuple(order[kept:]), told=told, **asked)
    else:
        told = {"source": name, "split": "the source's own"}
        train = Images(whole, tuple(range(count)), told=told, **asked)
        # In a fixed order: the first few are of all classes, where a folder has one class after the other.
        order = indices(len(other.labels), ORDER, 0, len(other.labels))
        held_out = Images(other, tuple(order), told=told, **asked)
    number = wanted(len(train), config)
    if number < len(train):
        places = indices(len(train), ORDER + 1, 0, number)
        train = replace(train, chosen=tuple(train.chosen[place] for place in places))
    return train, held_out


def _digits(config: Mapping[str, Any]) -> tuple[Source, Source | None, int]:
    classes, labels, pixels = image_sources.digits()
    return Source(classes, labels, lambda number: pixels[number]), None, 1


def _fashion_mnist(config: Mapping[str, Any]) -> tuple[Source, Source | None, int]:
    train, test = image_sources.fashion_mnist(config["path"])
    made = [Source(image_sources.FASHION, labels, _of_bytes(pixels)) for pixels, labels in (train, test)]
    return made[0], made[1], 1


def _of_bytes(pixels: Tensor) -> Callable[[int], Tensor]:
    """Reader of uint8 ``[n, X, Y]``."""
    return lambda number: pixels[number][None].float() / 255


def _folder(config: Mapping[str, Any]) -> tuple[Source, Source | None, int]:
    whole = image_files.folder(config["path"], "data.path")
    other = None
    if config["eval_path"] is not None:
        other = image_files.folder(config["eval_path"], "data.eval_path", whole.classes)
    return _of_files(whole, other)


def _saved(config: Mapping[str, Any]) -> tuple[Source, Source | None, int]:
    columns = config["image_column"], config["label_column"]
    whole, other = image_files.saved(config["path"], "data.path", *columns)
    if config["eval_path"] is not None:
        first, test = image_files.saved(config["eval_path"], "data.eval_path", *columns, whole.classes)
        other = test or first
    return _of_files(whole, other)


def _of_files(whole: Files, other: Files | None) -> tuple[Source, Source | None, int]:
    train, held_out = (
        None if files is None else Source(files.classes, files.labels, files.read, files.named)
        for files in (whole, other)
    )
    assert train is not None
    return train, held_out, 3


def _scenes(config: Mapping[str, Any]) -> tuple[Source, Source | None, int]:
    size = config["image_size"] or scenes.SIZE
    return _of_scenes(range(SCENES), size), _of_scenes(range(SCENES, SCENES + HELD_OUT_SCENES), size), 3


def _of_scenes(numbers: range, size: int) -> Source:
    # Pixels and mask are asked for one after the other.
    made = lru_cache(maxsize=1)(lambda number: scenes.scene(ORDER, numbers[number], size))
    return Source(scenes.CLASSES, Masks(len(numbers), lambda number: made(number)[1]), lambda number: made(number)[0])


def _mask_folder(config: Mapping[str, Any]) -> tuple[Source, Source | None, int]:
    classes, other = mask_files.names(config["classes"]), config["eval_path"]
    whole = mask_files.folder(config["path"], "data.path", classes)
    held_out = None if other is None else mask_files.folder(other, "data.eval_path", classes)
    return _of_files(whole, held_out)


def _mask_dataset(config: Mapping[str, Any]) -> tuple[Source, Source | None, int]:
    classes, columns = mask_files.names(config["classes"]), (config["image_column"], config["label_column"])
    whole, other = mask_files.saved(config["path"], "data.path", *columns, classes)
    if config["eval_path"] is not None:
        first, test = mask_files.saved(config["eval_path"], "data.eval_path", *columns, classes)
        other = test or first
    return _of_files(whole, other)


SOURCES = {
    "digits": _digits,
    "fashion_mnist": _fashion_mnist,
    "image_folder": _folder,
    "image_dataset": _saved,
    "scenes": _scenes,
    "mask_folder": _mask_folder,
    "mask_dataset": _mask_dataset,
}


def channelled(pixels: Tensor, channels: int) -> Tensor:
    """``[1 or 3, X, Y] → [channels, X, Y]``: grey three times over, or the brightness of a colour."""
    if len(pixels) == channels:
        return pixels
    if channels == 3:
        return pixels.expand(3, -1, -1).contiguous()
    return (torch.tensor(LUMA)[:, None, None] * pixels).sum(0, keepdim=True)


def resized(pixels: Tensor, size: int | None) -> Tensor:
    """``[C, X, Y] → [C, size, size]``: the shorter side scaled (bilinear, anti-aliased), the middle of the longer one.

    None leaves the image as it is.
    """
    if size is None or pixels.shape[1:] == (size, size):
        return pixels
    big = functional.interpolate(pixels[None], size=_scaled(pixels, size), mode="bilinear", antialias=True)[0]
    return _middle(big, size).clamp(0, 1).contiguous()


def resized_mask(mask: Tensor, size: int | None) -> Tensor:
    """``[X, Y] → [size, size]``: the same part of the image, each pixel the class of the nearest one."""
    if size is None or mask.shape == (size, size):
        return mask
    # fp64 holds every number of a class exactly.
    big = functional.interpolate(mask[None, None].double(), size=_scaled(mask, size), mode="nearest-exact")[0, 0]
    return _middle(big, size).long()


def _scaled(pixels: Tensor, size: int) -> tuple[int, int]:
    """Height and width of which the shorter is ``size``."""
    height, width = pixels.shape[-2:]
    shorter = min(height, width)
    # Rounded down, as image processors of transformers do: a student reads there what it was trained on.
    return height * size // shorter, width * size // shorter


def _middle(pixels: Tensor, size: int) -> Tensor:
    top, left = ((side - size) // 2 for side in pixels.shape[-2:])
    return pixels[..., top : top + size, left : left + size]
