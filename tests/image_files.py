"""Small images on disk, in the forms that sources of images read."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def idx(path: Path, values: np.ndarray[Any, Any]) -> None:
    """A gzipped IDX file of bytes."""
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def folder(path: Path) -> Path:
    """Two classes of five images each, of 6 by 4 pixels, red and blue."""
    for name, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (path / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (6, 4), colour).save(path / name / f"{number}.png")
    (path / "red" / "notes.txt").write_text("no image")
    return path


def saved(path: Path, parts: dict[str, int] | None = None, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Ten images of cats and dogs in turns, the brighter the later; or so many in each of ``parts``."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features
    from datasets import Image as Pictures

    def made(count: int) -> Any:
        kinds = Features({"picture": Pictures(), "kind": ClassLabel(names=list(names))})
        drawn = [Image.new("L", (5, 5), 20 * number) for number in range(count)]
        return Dataset.from_dict({"picture": drawn, "kind": [n % len(names) for n in range(count)]}, features=kinds)

    whole = made(10) if parts is None else DatasetDict({name: made(count) for name, count in parts.items()})
    whole.save_to_disk(str(path))
    return path


def _pair(number: int) -> tuple[Image.Image, Image.Image]:
    """12 by 6 pixels: red on the left, class 1, blue on the right, class 2; above them two rows without a class."""
    pixels = np.zeros((6, 12, 3), np.uint8)
    pixels[:, : 4 + number % 4, 0], pixels[:, 4 + number % 4 :, 2] = 255, 255
    mask = np.where(pixels[..., 0] > 0, 1, 2).astype(np.uint8)
    mask[:2] = 255
    return Image.fromarray(pixels), Image.fromarray(mask)


def pairs(path: Path) -> Path:
    """Six images with masks, in a sub-folder."""
    for number in range(6):
        for part, picture in zip(("images", "masks"), _pair(number), strict=True):
            (path / part / "a").mkdir(parents=True, exist_ok=True)
            picture.save(path / part / "a" / f"{number}.png")
    return path


def saved_pairs(path: Path) -> Path:
    """Five images with masks; the lower square of each, where every pixel has a class."""
    from datasets import Dataset, Features
    from datasets import Image as Pictures

    made = [tuple(part.crop((3, 2, 7, 6)) for part in _pair(number)) for number in range(5)]
    columns = {name: [pair[at] for pair in made] for at, name in enumerate(("picture", "mask"))}
    Dataset.from_dict(columns, features=Features({name: Pictures() for name in columns})).save_to_disk(str(path))
    return path
