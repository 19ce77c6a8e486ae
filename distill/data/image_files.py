"""Images in files: a folder with one sub-folder per class, or a dataset that the library datasets has saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from distill.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
TRAIN, TESTS = "train", ("test", "validation")
"""Parts of a saved dataset: what is trained on, and the first of the others that is there is held out."""
UNREADABLE = (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError)


def numbered(number: int) -> tuple[str, str]:
    """What an image and its mask are called that have no files of their own."""
    return f"image {number}", f"mask {number}"


@dataclass(frozen=True)
class Files:
    """As ``data.images.Source``: class names, the class number or the mask of each image, its pixels ``[3, X, Y]``, the
    names of an image and of its mask."""

    classes: tuple[str, ...]
    labels: Sequence[int | Tensor]
    read: Callable[[int], Tensor]
    named: Callable[[int], tuple[str, str]] = numbered


def folder(path: str, key: str, classes: tuple[str, ...] | None = None) -> Files:
    """Every image below the sub-folders of ``path``, which are the classes, in the order of their names.

    ``classes`` are those of the training images, of which the folder may have no others.

    Raises:
        UserError: named ``key``; there is no such folder, no class or no image in it, or a class of its own.
    """
    place = Path(path).expanduser()
    if not place.is_dir():
        raise UserError(key, path, "a folder with one sub-folder of images per class")
    found = {sub.name: images(sub) for sub in sorted(place.iterdir()) if sub.is_dir() and not sub.name.startswith(".")}
    names = classes or tuple(found)
    if not found or (classes is None and len(found) < 2):
        raise UserError(key, path, "a folder with two sub-folders of images or more, one per class")
    if unknown := sorted(found.keys() - set(names)):
        raise UserError(key, path, f"a folder of the classes in data.path (there is no {unknown[0]!r} among them)")
    if empty := next((name for name, files in found.items() if not files), None):
        raise UserError(key, str(place / empty), f"a sub-folder with images ({', '.join(sorted(SUFFIXES))})")
    pairs = [(file, names.index(name)) for name, files in found.items() for file in files]
    files = [file for file, _ in pairs]
    return Files(names, [label for _, label in pairs], lambda number: opened(files[number], key))


def images(place: Path) -> list[Path]:
    """Every image below a folder, in the order of their paths."""
    return sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def opened(file: Path, key: str) -> Tensor:
    """Its pixels ``[3, X, Y]``. Raises UserError, named ``key``, for what Pillow cannot read."""
    try:
        with Image.open(file) as image:
            return pixels_of(image)
    except UNREADABLE as error:
        raise UserError(key, str(file), f"an image that Pillow reads ({error})") from error


def pixels_of(image: Image.Image) -> Tensor:
    """fp32 ``[3, X, Y]`` in [0, 1], turned as its camera says; what is transparent has the colour that it hides.

    Raises ValueError for pixels without a largest value (floats, 32-bit integers).
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        grey = torch.from_numpy(np.asarray(upright).astype(np.float32)) / 65535
        return grey.expand(3, *grey.shape).clone()
    if upright.mode in ("F", "I"):
        raise ValueError(f"its pixels are of mode {upright.mode!r}, which has no largest value")
    return torch.from_numpy(np.asarray(upright.convert("RGB"), np.float32).copy()).permute(2, 0, 1) / 255


def saved(
    path: str, key: str, image: str, label: str, classes: tuple[str, ...] | None = None
) -> tuple[Files, Files | None]:
    """A dataset of ``save_to_disk``, and its part that is held out where it has several.

    Raises:
        UserError: named ``key``, or after the column that is missing.
    """
    found, other = open_saved(path, key, image, label)
    whole = _columns(found, path, key, (image, label), classes)
    return whole, None if other is None else _columns(other, path, key, (image, label), whole.classes)


def open_saved(path: str, key: str, image: str, label: str) -> tuple[Any, Any]:
    """The rows of a saved dataset, and those of its part that is held out or None, with both columns in each.

    Raises:
        UserError: named ``key``, or after the column that is missing.
    """
    from datasets import Dataset, DatasetDict, load_from_disk

    try:
        found = load_from_disk(path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(key, path, f"a folder written by datasets' save_to_disk ({error})") from error
    except IndexError as error:
        raise UserError(key, path, "a dataset whose parts have rows") from error
    other = None
    if isinstance(found, DatasetDict):
        if TRAIN not in found:
            raise UserError(key, path, f"a dataset with a part {TRAIN!r} (it has {', '.join(found)})")
        other = next((found[name] for name in TESTS if name in found), None)
        found = found[TRAIN]
    assert isinstance(found, Dataset)
    for rows in (found, *([] if other is None else [other])):
        for name, column in (("image_column", image), ("label_column", label)):
            if column not in rows.column_names:
                raise UserError(f"data.{name}", column, f"a column of {path} (it has {', '.join(rows.column_names)})")
    return found, other


def _columns(rows: Any, path: str, key: str, columns: tuple[str, str], classes: tuple[str, ...] | None) -> Files:
    """The images under ``classes``, where these are given: by name, where the rows have names, else by number."""
    image, label = columns
    labels = [int(value) for value in rows[label]] if _numbers(rows, label) else None
    if labels is None or min(labels) < 0:
        raise UserError("data.label_column", label, f"a column of class numbers from 0 in {path}")
    names = getattr(rows.features[label], "names", None)
    own = tuple(names or (f"LABEL_{number}" for number in range(max(labels) + 1)))
    if max(labels) >= len(own if classes is None or names else classes):
        most = len(own if classes is None or names else classes)
        raise UserError("data.label_column", label, f"a column of class numbers below {most} in {path}")
    if classes is None and len(own) < 2:
        raise UserError(key, path, "a dataset of two classes or more")
    if classes is not None and names:
        if unknown := sorted(set(own) - set(classes)):
            raise UserError(key, path, f"a dataset of the classes in data.path (there is no {unknown[0]!r} among them)")
        labels = [classes.index(own[number]) for number in labels]
    return Files(classes or own, labels, partial(row, rows, path, image))


def _numbers(rows: Any, label: str) -> bool:
    values = rows[label]
    return len(values) > 0 and all(isinstance(value, int) and not isinstance(value, bool) for value in values)


def row(rows: Any, path: str, column: str, number: int) -> Tensor:
    """The pixels ``[3, X, Y]`` of one row of a saved dataset. Raises UserError for what is no image."""
    try:
        value = rows[number][column]
        if not isinstance(value, Image.Image):
            raise ValueError(f"it is of type {type(value).__name__}")
        return pixels_of(value)
    except UNREADABLE as error:
        raise UserError("data.image_column", column, f"a column of images (row {number} of {path}: {error})") from error
