"""Images with masks in files: folders of pairs, or a dataset that the library datasets has saved.

``X`` by ``Y`` pixels. A mask has a class number, or 255 for none, in every pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from distill.data.image_files import UNREADABLE, Files, images, open_saved, opened, row
from distill.errors import UserError
from distill.images import IGNORED

IMAGES, MASKS = "images", "masks"
"""Sub-folders of a folder of pairs."""


class Masks(Sequence[Tensor]):
    """Masks that are read when they are asked for, int64 ``[X, Y]``."""

    def __init__(self, count: int, read: Callable[[int], Tensor]) -> None:
        self.size, self.read = count, read

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, number: int) -> Tensor: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, number: int | slice) -> Tensor | Sequence[Tensor]:
        assert isinstance(number, int)
        return self.read(number)


def names(given: int | Sequence[str]) -> tuple[str, ...]:
    """The classes of ``data.classes``: names, or how many there are.

    Raises:
        UserError: there are fewer than two, or so many that 255 would be one of them.
    """
    found = tuple(f"LABEL_{number}" for number in range(given)) if isinstance(given, int) else tuple(given)
    if not 2 <= len(found) <= IGNORED or len(set(found)) < len(found):
        raise UserError("data.classes", given, f"from 2 to {IGNORED} different names, or their number")
    return found


def folder(path: str, key: str, classes: tuple[str, ...]) -> Files:
    """Every image below ``path``/images with the mask of the same name (``.png``) below ``path``/masks.

    Raises:
        UserError: named ``key``; there are no such folders, no image, or an image without a mask.
    """
    place = Path(path).expanduser()
    if not all((place / part).is_dir() for part in (IMAGES, MASKS)):
        raise UserError(key, path, f"a folder with the sub-folders {IMAGES} and {MASKS}")
    files = images(place / IMAGES)
    if not files:
        raise UserError(key, str(place / IMAGES), "a folder with images")
    masks = [place / MASKS / file.relative_to(place / IMAGES).with_suffix(".png") for file in files]
    if missing := next((mask for mask in masks if not mask.is_file()), None):
        raise UserError(key, path, f"a folder with a mask for every image (there is no {missing.relative_to(place)})")

    def read(number: int) -> Tensor:
        try:
            with Image.open(masks[number]) as image:
                return numbers_of(image, len(classes))
        except UNREADABLE as error:
            raise UserError(key, str(masks[number]), f"a mask ({error})") from error

    def named(number: int) -> tuple[str, str]:
        return str(files[number].relative_to(place)), str(masks[number].relative_to(place))

    return Files(classes, Masks(len(files), read), lambda number: opened(files[number], key), named)


def saved(path: str, key: str, image: str, mask: str, classes: tuple[str, ...]) -> tuple[Files, Files | None]:
    """A dataset of ``save_to_disk`` with a column of images and one of masks, and its part that is held out.

    Raises:
        UserError: named ``key``, or after the column that is missing.
    """
    whole, other = open_saved(path, key, image, mask)

    def files(rows: Any) -> Files:
        def read(number: int) -> Tensor:
            try:
                value = rows[number][mask]
                if not isinstance(value, Image.Image):
                    raise ValueError(f"it is of type {type(value).__name__}")
                return numbers_of(value, len(classes))
            except UNREADABLE as error:
                allowed = f"a column of masks (row {number} of {path}: {error})"
                raise UserError("data.label_column", mask, allowed) from error

        def named(number: int) -> tuple[str, str]:
            return f"{image} of row {number}", f"{mask} of row {number}"

        return Files(classes, Masks(len(rows), read), lambda number: row(rows, path, image, number), named)

    return files(whole), None if other is None else files(other)


def numbers_of(image: Image.Image, classes: int) -> Tensor:
    """int64 ``[X, Y]``: the values of a grey or a palette image, unchanged, turned as its own EXIF tag says. Raises
    ValueError for any other image, and for a value that is neither one of so many classes nor 255."""
    if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
        raise ValueError(f"its pixels are of mode {image.mode!r}, and one number each is wanted")
    found = torch.from_numpy(np.asarray(ImageOps.exif_transpose(image)).astype(np.int64))
    strange = found[(found != IGNORED) & ((found < 0) | (found >= classes))]
    if len(strange) > 0:
        raise ValueError(f"it has the value {int(strange[0])}, and data.classes numbers 0 to {classes - 1}")
    return found
