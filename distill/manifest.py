"""What a checkpoint directory holds: size, SHA-256 and writing rank of every file, and what wrote them.

Format 2 adds to format 1 (files and step) the ranks, the shape of the run and the monitored metric; format 1 is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill import watchdog
from distill.errors import UserError

NAME = "manifest.json"
FORMAT = 2
SHARD = re.compile(r"zero_pp_rank_(\d+)_")
"""DeepSpeed's files of one rank; every other file is written by rank 0."""
ALLOWED = "an intact checkpoint directory"
BLOCK = 1 << 26
"""Bytes that are hashed between two signs of life."""


@dataclass(frozen=True)
class Layout:
    """How the state is spread over files: it loads as it is only into the same layout.

    ``world_size`` and ``precision`` are None in format 1. ``masters`` is the dtype of the weights the optimizer steps.
    """

    strategy: str
    world_size: int | None
    precision: str | None
    masters: str | None

    @property
    def sharded(self) -> bool:
        return self.strategy.startswith("zero")


@dataclass(frozen=True)
class File:
    sha256: str
    bytes: int
    rank: int


@dataclass(frozen=True)
class Manifest:
    """``monitor`` is the metric that retention looks at and ``value`` what it was at this step, if it was measured."""

    step: int
    layout: Layout
    files: dict[str, File]
    monitor: str | None = None
    value: float | None = None


def written_by(folder: Path, rank: int, world_size: int) -> dict[str, File]:
    """Hashes and flushes the files that ``rank`` wrote, by path relative to ``folder``.

    The writer does both: its page cache has the bytes, and on a network file system only its flush covers them.
    """
    found = {}
    for name in names(folder):
        # A rank beyond this run's belongs to nobody here; rank 0 reports it.
        if writer(name) == rank or (rank == 0 and writer(name) >= world_size):
            path = folder / name
            flush(path)
            found[name] = File(sha256(path), path.stat().st_size, writer(name))
    return found


def write(folder: Path, manifest: Manifest) -> None:
    """Writes ``manifest.json``; flushes it and every folder, so that a rename may make all of it visible.

    Raises:
        OSError: the files in ``folder`` are not those of the manifest: ranks see different disks, or one wrote nothing.
    """
    present = set(names(folder))
    if present != set(manifest.files):
        differing = sorted(present ^ set(manifest.files))
        listed = ", ".join(f"{name} (rank {writer(name)})" for name in differing[:4])
        raise OSError(f"rank 0 and the ranks that wrote them disagree about {listed}: is the folder shared by all?")
    content = {"format": FORMAT, "step": manifest.step, **asdict(manifest.layout)}
    content |= {"monitor": manifest.monitor, "value": manifest.value}
    content["files"] = {name: asdict(manifest.files[name]) for name in sorted(manifest.files)}
    with (folder / NAME).open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2))
        file.flush()
        os.fsync(file.fileno())
    for inner in (path for path in folder.rglob("*") if path.is_dir()):
        flush(inner)
    flush(folder)


def read(folder: Path, key: str) -> Manifest:
    """The manifest of a checkpoint directory; no other file is looked at.

    Raises:
        UserError: named ``key``; it is missing, unreadable, or of a later version of this program.
    """
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        if content.get("format", 1) > FORMAT:
            allowed = f"a checkpoint that this version can read (format {FORMAT}, not {content['format']})"
            raise UserError(key, str(folder), allowed)
        return _parsed(content)
    except FileNotFoundError:
        raise UserError(key, str(folder), f"{ALLOWED} ({NAME} is missing)") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(key, str(folder), f"{ALLOWED} ({NAME} cannot be read)") from None


def check(folder: Path, manifest: Manifest, key: str, share: tuple[int, int] = (0, 1)) -> None:
    """Compares a directory with its manifest: no file missing, added, truncated or altered.

    ``share`` is (rank, ranks): every rank looks at the names and sizes of all files, and hashes its part of them.

    Raises:
        UserError: named ``key``; it says which file of which rank is damaged, and how.
    """
    present = set(names(folder))
    for name in sorted(manifest.files.keys() | present):
        if name not in present:
            raise _damaged(key, folder, name, manifest.files[name].rank, "is missing")
        if name not in manifest.files:
            raise _damaged(key, folder, name, writer(name), f"is not in {NAME}: it is another checkpoint's")
        expected, size = manifest.files[name], (folder / name).stat().st_size
        if size != expected.bytes:
            raise _damaged(key, folder, name, expected.rank, f"has {size} bytes, not {expected.bytes}")
    for name in sorted(manifest.files)[share[0] :: share[1]]:
        found = sha256(folder / name)
        if found != manifest.files[name].sha256:
            raise _damaged(key, folder, name, manifest.files[name].rank, _difference(found, manifest))


def intact(folder: Path, manifest: Manifest) -> bool:
    """Whether every file is there with its size: the part of :func:`check` that costs nothing."""
    sizes = {name: (folder / name).stat().st_size for name in names(folder)}
    return sizes == {name: file.bytes for name, file in manifest.files.items()}


def names(folder: Path) -> Iterable[str]:
    """Files of a checkpoint by relative path, sorted, without the manifest and hidden files."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if path.name[0] != "." and path.as_posix() != NAME)


def writer(name: str) -> int:
    """The rank that writes a file."""
    shard = SHARD.search(Path(name).name)
    return int(shard[1]) if shard else 0


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
            watchdog.progress()
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parsed(content: dict[str, Any]) -> Manifest:
    keys = ("strategy", "world_size", "precision", "masters")
    layout = Layout(*(content[key] for key in keys)) if "format" in content else Layout("single", None, None, None)
    files = {name: File(file["sha256"], file["bytes"], file.get("rank", 0)) for name, file in content["files"].items()}
    return Manifest(int(content["step"]), layout, files, content.get("monitor"), content.get("value"))


def _difference(found: str, manifest: Manifest) -> str:
    """What a wrong SHA-256 tells: a file in another one's place, or an altered one."""
    owner = next((name for name, file in manifest.files.items() if file.sha256 == found), None)
    return "differs from its SHA-256" if owner is None else f"holds what rank {writer(owner)} wrote as {owner}"


def _damaged(key: str, folder: Path, name: str, rank: int, how: str) -> UserError:
    return UserError(key, str(folder), f"{ALLOWED} ({name} of rank {rank} {how})")
