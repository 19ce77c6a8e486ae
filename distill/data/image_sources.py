"""Image sources of a known form: scikit-learn's digits, and Fashion-MNIST as IDX files.

``n`` images of ``X`` by ``Y`` grey pixels.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError

FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package dataset-fashion-mnist puts its files."""
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"


def digits() -> tuple[tuple[str, ...], list[int], Tensor]:
    """Classes, labels and pixels ``[1797, 1, 8, 8]`` of the handwritten digits that scikit-learn brings along.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        allowed = "a source of images that is here (for digits: pip install 'distill[vision]')"
        raise UserError("data.source", "digits", allowed) from error
    found = load_digits()
    pixels = torch.from_numpy(found.images.astype(np.float32) / 16)[:, None]
    return tuple(str(name) for name in range(10)), [int(label) for label in found.target], pixels


def fashion_mnist(folder: str | None) -> tuple[tuple[Tensor, list[int]], tuple[Tensor, list[int]]]:
    """Training and test images: uint8 ``[n, X, Y]`` and their class numbers.

    Raises:
        UserError: the files are not there, or damaged.
    """
    path = Path(folder or FASHION_FOLDER)
    parts = []
    for part in ("train", "t10k"):
        pixels, labels = _read(path, f"{part}-{IMAGES}", 3), _read(path, f"{part}-{LABELS}", 1)
        if len(pixels) != len(labels) or int(labels.max()) >= len(FASHION):
            allowed = f"{len(pixels)} labels below {len(FASHION)}, as many as {part}-{IMAGES} has images"
            raise UserError("data.path", str(path), f"a folder whose {part}-{LABELS} has {allowed}")
        parts.append((pixels, [int(label) for label in labels]))
    return parts[0], parts[1]


def _read(folder: Path, name: str, dimensions: int) -> Tensor:
    """An IDX file of unsigned bytes, gzipped or plain: two zero bytes, type 8, the number of dimensions, their sizes
    (big-endian), the bytes (the format is described on the page of the MNIST database)."""
    file = next((file for file in (folder / f"{name}.gz", folder / name) if file.is_file()), None)
    if file is None:
        allowed = f"a folder with {name}.gz (Debian: apt install dataset-fashion-mnist)"
        raise UserError("data.path", str(folder), allowed)
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        kind, sizes = content[:4], struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
        if kind != bytes([0, 0, 8, dimensions]) or 0 in sizes:
            raise ValueError(f"no IDX file of {dimensions}-dimensional bytes")
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(sizes)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise UserError("data.path", str(file), f"an intact IDX file ({error})") from error
    return torch.from_numpy(values.copy())
