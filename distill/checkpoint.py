"""Checkpoint directories that are complete or absent: written aside, hashed, flushed, renamed.

``checkpoints/step-00000100/`` holds ``state.ckpt`` (plain values and tensors, read with ``weights_only=True``) and
``manifest.json`` with the SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from distill.errors import UserError

STATE, MANIFEST = "state.ckpt", "manifest.json"
COMPLETE = "step-????????"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    folder: Path
    step: int

    @property
    def state(self) -> Path:
        return self.folder / STATE


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def staging(root: Path, step: int) -> Path:
    """An empty directory to write a checkpoint into; leftovers of a killed save are removed."""
    for leftover in root.glob("*.partial"):
        shutil.rmtree(leftover)
    folder = root / f"step-{step:08d}.partial"
    folder.mkdir(parents=True)
    return folder


def publish(staged: Path, step: int, keep_last: int) -> Path:
    """Makes a staged checkpoint visible in one rename and drops all but the last ``keep_last``."""
    files = {p.name: {"sha256": sha256(p), "bytes": p.stat().st_size} for p in sorted(staged.iterdir())}
    _write(staged / MANIFEST, json.dumps({"step": step, "files": files}, indent=2))
    for name in files:
        _flush(staged / name)
    _flush(staged)
    root, final = staged.parent, staged.with_suffix("")
    staged.rename(final)
    _flush(root)
    for old in sorted(root.glob(COMPLETE))[:-keep_last]:
        _remove(old)
    return final


def forget_after(run_dir: Path, step: int) -> None:
    """Removes checkpoints of later steps: they belong to a future that a resumed run is about to replace."""
    for folder in (run_dir / "checkpoints").glob(COMPLETE):
        if int(folder.name.removeprefix("step-")) > step:
            _remove(folder)


def verify(folder: Path, key: str = "resume") -> Checkpoint:
    """Checks every file against the manifest.

    Raises:
        UserError: a file is missing, truncated or altered; it is named.
    """
    manifest = folder / MANIFEST
    allowed = "an intact checkpoint directory"
    if not manifest.is_file():
        raise UserError(key, str(folder), f"{allowed} ({MANIFEST} is missing)")
    try:
        content = json.loads(manifest.read_text())
        step, files = int(content["step"]), dict(content["files"])
    except (ValueError, KeyError, TypeError):
        raise UserError(key, str(folder), f"{allowed} ({MANIFEST} cannot be read)") from None
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(key, str(folder), f"{allowed} ({name} is missing)")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise UserError(key, str(folder), f"{allowed} ({name} has {size} bytes, not {expected['bytes']})")
        if sha256(path) != expected["sha256"]:
            raise UserError(key, str(folder), f"{allowed} ({name} differs from its SHA-256)")
    return Checkpoint(folder, step)


def find(resume: str | None, run_dir: Path) -> Checkpoint | None:
    """The verified checkpoint that ``resume`` means: ``auto`` (the run directory's latest, if any) or a path.

    A path is a checkpoint directory or a run directory.

    Raises:
        UserError: the path holds no checkpoint, or the checkpoint is damaged. An older one is never taken silently.
    """
    if resume is None:
        return None
    if resume == "auto":
        folder = latest(run_dir)
        return None if folder is None else verify(folder)
    path = Path(resume)
    found = path if (path / MANIFEST).exists() or path.name.startswith("step-") else latest(path)
    if found is None or not found.is_dir():
        raise UserError("resume", resume, "auto, or the path of a run or checkpoint directory")
    return verify(found)


def latest(run_dir: Path) -> Path | None:
    """The newest complete checkpoint directory of a run."""
    complete = sorted((run_dir / "checkpoints").glob(COMPLETE))
    return complete[-1] if complete else None


def _remove(folder: Path) -> None:
    # Renamed first: a deletion that is cut short must not leave a directory that looks complete.
    doomed = folder.rename(folder.with_suffix(".partial"))
    shutil.rmtree(doomed)


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
