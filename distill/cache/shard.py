"""One file of a cache: the samples of a range of rows, one after the other, as safetensors.

Every file is sealed: its metadata hold the digest of the provenance that it was written for, and one of its tensors. So
it tells by itself whether it is whole and of this cache, whatever the manifest says, and ranks need not agree on it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor

from distill.cache.compress import FIELDS, Kept
from distill.cache.manifest import Provenance, Shard, drafted
from distill.errors import RunError
from distill.types import Row

HASH_BYTES = 16
NARROW = 1 << 16
"""Vocabularies up to this size have ids of two bytes."""
WIDE = ("tokens", "drawn")
"""Fields that hold token ids."""
SEAL = "distill"
"""The one key of the metadata, as safetensors writes several in any order."""


@dataclass(frozen=True)
class Entry:
    """What is cached of one sample: of each target what is kept, or the teacher's states ``[targets, H]``."""

    sample_id: int
    token_hash: bytes
    kept: Kept | None
    states: Tensor | None


def name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def token_hash(row: Row) -> bytes:
    """Of a row's token ids and of which of them are targets: what a cached answer is the answer to."""
    digest = hashlib.blake2b(digest_size=HASH_BYTES, person=b"tokens")
    digest.update(row.input_ids.numpy().astype("<i8").tobytes())
    targets = row.target_mask.numpy().astype("u1")
    # The first token is never predicted, whatever the mask says.
    targets[:1] = 0
    digest.update(targets.tobytes())
    return digest.digest()


def save(path: Path, entries: list[Entry], made: Provenance) -> None:
    """Writes a shard, at once or not at all."""
    stored: torch.dtype = getattr(torch, made.stored)
    narrow = torch.uint16 if made.vocab_size <= NARROW else torch.int32
    tensors = {
        "sample_ids": torch.tensor([entry.sample_id for entry in entries]),
        "hashes": torch.from_numpy(np.stack([np.frombuffer(entry.token_hash, np.uint8) for entry in entries])),
        "ends": torch.tensor([_size(entry) for entry in entries]).cumsum(0),
    }
    for field in FIELDS:
        parts = [getattr(entry.kept, field) for entry in entries if entry.kept is not None]
        if parts:
            found = torch.cat(parts)
            tensors[field] = found.to(narrow if field in WIDE else stored if field == "logprobs" else torch.float32)
    states = [entry.states for entry in entries if entry.states is not None]
    if states:
        tensors["states"] = torch.cat(states).to(stored)
        if not bool(tensors["states"].isfinite().all()):
            raise RunError(f"The teacher's states do not fit into {stored}: choose another `cache.stored`.")
    write(path, tensors, made)


def write(path: Path, tensors: dict[str, Tensor], made: Provenance) -> None:
    """Writes a sealed file, at once or not at all."""
    draft = drafted(path)
    # Not the library's own writing to a file, which no one else may read then.
    with draft.open("wb") as file:
        file.write(serialise(tensors, {SEAL: f"{made.digest()} {_content(tensors)}"}))
        file.flush()
        os.fsync(file.fileno())
    try:
        draft.replace(path)
    except FileNotFoundError:
        # Another process with the same words has finished the cache, and cleared drafts away.
        if not sealed(path, made):
            raise


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def readable(path: Path) -> bool:
    """Whether a shard is there and whole, as far as its size tells."""
    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def made_for(path: Path) -> str:
    """The digest of the provenance that a file was written for; empty if it has no seal.

    Raises:
        OSError, SafetensorError: it cannot be read.
    """
    with safe_open(path, "pt") as file:
        return seal(file)[0]


def sealed(path: Path, made: Provenance) -> bool:
    """Whether a file is there, of this cache, and as it was written; all of it is read."""
    try:
        with safe_open(path, "pt") as file:
            found = seal(file)
        return found == (made.digest(), _content(load_file(path)))
    except (OSError, SafetensorError):
        return False


def seal(file: Any) -> tuple[str, str]:
    """Of an open file: the digests of its provenance and of its tensors; empty where it has none."""
    provenance, _, content = (file.metadata() or {}).get(SEAL, "").partition(" ")
    return provenance, content


def _content(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def intact(path: Path, expected: Shard) -> bool:
    """Whether a shard is, byte by byte, what it has to be."""
    try:
        return readable(path) and describe(path) == expected
    except (OSError, SafetensorError):
        return False


def describe(path: Path) -> Shard:
    """Of a shard that is there.

    Raises:
        OSError, SafetensorError: it cannot be read.
    """
    with safe_open(path, "pt") as file:
        ends = file.get_tensor("ends")
    return Shard(len(ends), int(ends[-1]), path.stat().st_size, sha256(path))


class OpenShard:
    """A shard, read sample by sample."""

    def __init__(self, path: Path) -> None:
        self.file = safe_open(path, "pt")
        self.ends: NDArray[np.int64] = self.file.get_tensor("ends").numpy()

    def kept(self, place: int) -> Kept:
        """Of the sample at ``place``."""
        found = {field: self._slice(field, place) for field in FIELDS}
        return Kept(**{field: value.long() if field in WIDE else value for field, value in found.items()})

    def states(self, place: int) -> Tensor:
        return self._slice("states", place)

    def _slice(self, field: str, place: int) -> Tensor:
        start = int(self.ends[place - 1]) if place else 0
        found: Tensor = self.file.get_slice(field)[start : int(self.ends[place])]
        return found


def _size(entry: Entry) -> int:
    held = entry.states if entry.kept is None else entry.kept.tokens
    assert held is not None
    return len(held)
