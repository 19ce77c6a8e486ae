"""Weights as they were at an earlier step, kept on disk until a later one: each rank writes the pieces it has.

``step-00000050/`` holds one ``rank-N.bin`` per rank (values as they lie in memory, in the weights' own dtype) and
``pieces.json`` (which coordinates of which weight are where, with a CRC-32 of every file). A folder is complete or
absent: written aside, flushed, renamed. Read by mapping the files, by any number of ranks.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill import distributed, manifest
from distill.errors import RunError

INDEX, FORMAT = "pieces.json", 1
COMPLETE = "step-????????"
_ALIGNED = 64


@dataclass(frozen=True)
class Stretch:
    """Coordinates ``[start, start + numel)`` of a flattened weight, at ``offset`` bytes in a file."""

    name: str
    start: int
    numel: int
    dtype: str
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.numel * self.kind.itemsize

    @property
    def kind(self) -> torch.dtype:
        kind = getattr(torch, self.dtype)
        if not isinstance(kind, torch.dtype):
            raise ValueError(f"{self.dtype} is no dtype")
        return kind


@dataclass
class File:
    """What one rank wrote."""

    name: str
    bytes: int = 0
    crc32: int = 0
    stretches: list[Stretch] = field(default_factory=list)


class Writer:
    """Writes this rank's pieces of the snapshot of ``step``; :meth:`publish` makes it visible.

    ``without`` is the override that needs no snapshot.
    A disk that is full is told there, by all ranks together: until then the measurement goes on, whose collectives the
    other ranks take part in.
    """

    def __init__(self, root: Path, step: int, without: str = "callbacks.sparsity.since_last=false") -> None:
        self.staged, self.without = root / f"step-{step:08d}.partial", without
        self._file = File(f"rank-{distributed.rank()}.bin")
        self._error: OSError | None = None
        self._stream: Any = None
        try:
            self.staged.mkdir(parents=True, exist_ok=True)
            self._stream = (self.staged / self._file.name).open("wb")
        except OSError as error:
            self._error = error

    def add(self, name: str, start: int, values: Tensor) -> None:
        if self._error is not None or not values.numel():
            return
        flat = values.detach().reshape(-1).cpu().contiguous()
        dtype = str(flat.dtype).removeprefix("torch.")
        self._file.stretches.append(Stretch(name, start, flat.numel(), dtype, self._file.bytes))
        content = flat.view(torch.uint8).numpy().data
        try:
            for part in (content, bytes(-len(content) % _ALIGNED)):
                self._stream.write(part)
                self._file.crc32 = zlib.crc32(part, self._file.crc32)
                self._file.bytes += len(part)
        except OSError as error:
            self._error = error

    def publish(self) -> None:
        """A collective, after which the snapshot is on disk.

        Raises:
            RunError: a rank could not write; nothing is left of the snapshot.
        """
        told = distributed.gather_objects(self._finished())
        files = [file for file in told if isinstance(file, File)]
        failed = [f"rank {rank}: {error}" for rank, error in enumerate(told) if not isinstance(error, File)]
        problem: object = failed[0] if failed else None
        if distributed.rank() == 0 and problem is None:
            try:
                self._rename(files)
            except OSError as error:
                problem = error.strerror or str(error)
        problem = distributed.gather_objects(problem)[0]
        if problem is not None:
            if distributed.rank() == 0:
                shutil.rmtree(self.staged, ignore_errors=True)
            allowed = f"`{self.without}` needs no space for it"
            raise RunError(f"cannot keep earlier weights in {self.staged.parent} ({problem}); {allowed}.")

    def _finished(self) -> File | str:
        try:
            if self._error is not None:
                raise self._error
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
        except OSError as error:
            return error.strerror or str(error)
        return self._file

    def _rename(self, files: list[File]) -> None:
        index = self.staged / INDEX
        index.write_text(json.dumps({"format": FORMAT, "files": [asdict(file) for file in files]}), encoding="utf-8")
        manifest.flush(index)
        manifest.flush(self.staged)
        final = self.staged.with_suffix("")
        if final.exists():
            _remove(final)
        self.staged.rename(final)
        manifest.flush(final.parent)


class Snapshot:
    """A snapshot's files, mapped.

    Raises:
        ValueError: it is not complete, not readable, or of another version.
    """

    def __init__(self, root: Path, step: int) -> None:
        self.folder = root / f"step-{step:08d}"
        try:
            content = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}")
            self.files = [_parsed(file) for file in content["files"]]
            self._bytes = {file.name: _mapped(self.folder / file.name, file.bytes) for file in self.files}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{self.folder} cannot be read: {error}") from error
        self._places: dict[str, list[tuple[Stretch, str]]] = {}
        for file in self.files:
            for stretch in file.stretches:
                self._places.setdefault(stretch.name, []).append((stretch, file.name))
        for places in self._places.values():
            places.sort(key=lambda place: place[0].start)

    def check(self, numel: Mapping[str, int]) -> None:
        """Every coordinate of weights of these sizes is there once, and the files this rank looks at are unharmed.

        Raises:
            ValueError: saying what is missing or damaged.
        """
        for name, size in numel.items():
            end = 0
            for stretch, _ in self._places.get(name, []):
                end = stretch.start + stretch.numel if stretch.start == end else -1
            if end != size:
                raise ValueError(f"{self.folder} does not hold all of {name}")
        for file in self.files[distributed.rank() :: distributed.world_size()]:
            if zlib.crc32(self._bytes[file.name].numpy().data) != file.crc32:
                raise ValueError(f"{self.folder / file.name} is damaged")

    def read(self, name: str, start: int, numel: int) -> Tensor:
        """Coordinates ``[start, start + numel)`` of a flattened weight that :meth:`check` has found."""
        found = []
        for stretch, file in self._places.get(name, []):
            low, high = max(start, stretch.start), min(start + numel, stretch.start + stretch.numel)
            if low < high:
                values = self._bytes[file][stretch.offset : stretch.end].view(stretch.kind)
                found.append(values[low - stretch.start : high - stretch.start])
        return found[0] if len(found) == 1 else torch.cat([torch.empty(0), *found])


def _parsed(file: dict[str, Any]) -> File:
    found = File(file["name"], file["bytes"], file["crc32"], [Stretch(**stretch) for stretch in file["stretches"]])
    if any(stretch.end > found.bytes for stretch in found.stretches):
        raise ValueError(f"{found.name} is shorter than what it holds")
    return found


def _mapped(path: Path, size: int) -> Tensor:
    if path.stat().st_size != size:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, not {size}")
    return torch.from_file(str(path), size=size, dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)


def steps(root: Path) -> list[int]:
    """Steps of the snapshots under ``root``, the oldest first."""
    return sorted(int(folder.name.removeprefix("step-")) for folder in root.glob(COMPLETE))


def prune(root: Path, checkpoints: Iterable[int]) -> None:
    """Keeps the newest snapshot, and the one that a run resumed from each of these checkpoints goes on from."""
    present = steps(root)
    needed = {max((step for step in present if step <= saved), default=-1) for saved in checkpoints}
    for step in present[:-1]:
        if step not in needed:
            _remove(root / f"step-{step:08d}")


def forget_after(root: Path, last_step: int) -> None:
    """Removes snapshots after ``last_step``, and what is left of unfinished ones."""
    for leftover in root.glob("*.partial"):
        shutil.rmtree(leftover)
    for step in steps(root):
        if step > last_step:
            _remove(root / f"step-{step:08d}")


def adopt(root: Path, other: Path, last_step: int) -> None:
    """Copies the snapshot that a run resumed at ``last_step`` goes on from out of another run's, where it has one."""
    found = [step for step in steps(other) if step <= last_step]
    if found and not (target := root / f"step-{found[-1]:08d}").exists():
        staged = target.with_suffix(".partial")
        shutil.copytree(other / target.name, staged)
        staged.rename(target)


def _remove(folder: Path) -> None:
    # Renamed first: a deletion that is cut short must not leave a folder that looks complete.
    shutil.rmtree(folder.rename(folder.with_suffix(".old.partial")))
