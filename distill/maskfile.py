"""The mask file: which coordinates of a model are in a mask, one bit each, and how it came about (docs/masks.md)."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distill.analysis.source import Shapes, match, natural
from distill.errors import UserError

DESCRIPTION, VERSION = "distill_mask", 1
"""The key of the one metadata entry, ``SHA256 JSON`` (several would have no fixed order), and the format's version."""
SHORT = 12
"""Digits of a fingerprint that a message shows."""


@dataclass(frozen=True)
class Provenance:
    """How a mask came about; what its rule has no use for is None.

    ``source`` and ``trained`` are fingerprints of checkpoints, ``like`` and ``masks`` the checksums of other masks.
    ``requested`` is the share of the coordinates asked for, ``scope`` says whether it holds for each ``tensor`` or for
    all of them together (``global``).
    """

    rule: str
    source: str
    version: str
    trained: str | None = None
    tolerance: float | None = None
    precision: str | None = None
    requested: float | None = None
    scope: str | None = None
    seed: int | None = None
    like: str | None = None
    masks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Packed:
    """A mask of one tensor: uint8 ``[ceil(N/8)]``, coordinate i in bit i mod 8 of byte i div 8, the shape, #{true}."""

    bits: Tensor
    shape: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class _Tensor:
    """What the description in a mask file says of one tensor: ``sha256`` is that of its packed bits."""

    shape: tuple[int, ...]
    count: int
    sha256: str


def pack(mask: Tensor) -> Packed:
    """Eight coordinates to a byte; the bits left over in the last byte are 0."""
    bits = np.packbits(mask.detach().reshape(-1).cpu().numpy(), bitorder="little")
    return Packed(torch.from_numpy(bits), tuple(mask.shape), int(torch.count_nonzero(mask)))


def write(path: Path, masks: Mapping[str, Packed], provenance: Provenance) -> None:
    """Writes a mask file: complete under its name, or not at all.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind then.
    """
    described = {name: _Tensor(packed.shape, packed.count, _sha256(packed.bits)) for name, packed in masks.items()}
    content = {
        "version": VERSION,
        "provenance": asdict(provenance),
        "density": _density(described),
        "tensors": {name: asdict(tensor) for name, tensor in described.items()},
    }
    text = json.dumps(content, sort_keys=True)
    metadata = {DESCRIPTION: f"{hashlib.sha256(text.encode()).hexdigest()} {text}"}
    data = safetensors.torch.save({name: packed.bits for name, packed in masks.items()}, metadata)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class MaskFile:
    """A mask file, memory-mapped: its names, shapes and provenance are known at once, its bits read by :meth:`mask`.

    ``names`` are those of the checkpoint the mask was made for, ``counts`` the coordinates of each tensor that are in
    the mask, ``checksum`` identifies mask and provenance.

    Raises:
        UserError: named ``key``; the file is missing, damaged, of another kind or of a later version of this program.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        if not path.is_file():
            raise UserError(key, str(path), "an existing mask file (made by `distill mask`)")
        try:
            self._reader: Any = safe_open(path, framework="pt").__enter__()
            metadata = self._reader.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise UserError(key, str(path), f"an intact mask file ({error})") from error
        if DESCRIPTION not in metadata:
            raise UserError(key, str(path), "a mask file made by `distill mask`, not other safetensors")
        self.checksum, _, description = metadata[DESCRIPTION].partition(" ")
        self.provenance, self._tensors = self._parsed(description)
        self.shapes: Shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.counts = {name: tensor.count for name, tensor in self._tensors.items()}
        self._check_layout()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    @property
    def density(self) -> float:
        """Share of all coordinates that are in the mask."""
        return _density(self._tensors)

    def mask(self, name: str) -> Tensor:
        """Bool, of the tensor's shape: True where a coordinate is in the mask.

        Raises:
            UserError: the bits are not those that were written.
        """
        expected, bits = self._tensors[name], self._reader.get_tensor(name)
        if _sha256(bits) != expected.sha256:
            raise self._damaged(f"the bits of {name!r} differ from their SHA-256")
        flat = np.unpackbits(bits.numpy(), count=math.prod(expected.shape), bitorder="little").view(np.bool_)
        return torch.from_numpy(flat).reshape(expected.shape)

    def fit(self, shapes: Shapes, tied: Iterable[str] = ()) -> dict[str, str]:
        """Names of a model's tensors → names in the mask, by the conventions of ``analysis.source.match``.

        ``tied`` are names of the model that stand for a tensor it has under another name.

        Raises:
            UserError: a tensor of either has no counterpart, or another shape.
        """
        found = match(self.shapes, shapes, (), tied)
        if not found.complete:
            raise UserError(self.key, str(self.path), f"a mask of the model's tensors ({found})")
        return dict(found.pairs)

    def refuse_other_source(self, fingerprint: str, key: str) -> None:
        """Raises a UserError named ``key`` unless ``fingerprint`` is that of the weights the mask was made for."""
        own = self.provenance.source
        if fingerprint != own:
            shown = f"{fingerprint[:SHORT]}, not {own[:SHORT]}"
            raise UserError(key, str(self.path), f"a mask made for these weights (their fingerprint is {shown})")

    def _parsed(self, text: str) -> tuple[Provenance, dict[str, _Tensor]]:
        if hashlib.sha256(text.encode()).hexdigest() != self.checksum:
            raise self._damaged("its description differs from its SHA-256")
        try:
            content = json.loads(text)
            if content["version"] > VERSION:
                allowed = f"a mask file that this version can read (format {VERSION}, not {content['version']})"
                raise UserError(self.key, str(self.path), allowed)
            provenance = Provenance(**content["provenance"] | {"masks": tuple(content["provenance"]["masks"])})
            tensors = {
                name: _Tensor(tuple(map(int, tensor["shape"])), int(tensor["count"]), tensor["sha256"])
                for name, tensor in sorted(content["tensors"].items(), key=lambda item: natural(item[0]))
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise self._damaged("its description cannot be read") from error
        return provenance, tensors

    def _check_layout(self) -> None:
        if set(self._reader.keys()) != set(self._tensors):
            raise self._damaged("its tensors are not those of its description")
        for name, shape in self.shapes.items():
            part, numel = self._reader.get_slice(name), math.prod(shape)
            if part.get_dtype() != "U8" or part.get_shape() != [-(-numel // 8)]:
                raise self._damaged(f"{name!r} is not one bit for each of {numel} coordinates")
            if numel % 8 and int(part[-1:][0]) >> numel % 8:
                raise self._damaged(f"{name!r} has bits beyond its {numel} coordinates")

    def _damaged(self, how: str) -> UserError:
        return UserError(self.key, str(self.path), f"an intact mask file ({how})")


def _sha256(bits: Tensor) -> str:
    return hashlib.sha256(bits.numpy().data).hexdigest()


def _density(tensors: Mapping[str, _Tensor]) -> float:
    numel = sum(math.prod(tensor.shape) for tensor in tensors.values())
    return sum(tensor.count for tensor in tensors.values()) / numel if numel else 0.0
