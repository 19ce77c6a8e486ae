"""Checkpoint directories that are complete or absent: written aside, hashed, flushed, renamed, then pointed at.

``checkpoints/step-00000100/`` holds ``state.ckpt`` (one file, or DeepSpeed's folder of shards) and ``manifest.json``;
``checkpoints/latest`` is a text file with the name of the newest one.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill import distributed, manifest, retention
from distill.errors import RunError, UserError
from distill.manifest import Layout, Manifest

STATE, MANIFEST, POINTER = "state.ckpt", manifest.NAME, "latest"
COMPLETE = "step-????????"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    folder: Path
    step: int
    layout: Layout

    @property
    def state(self) -> Path:
        return self.folder / STATE

    @property
    def run_dir(self) -> Path:
        return self.folder.resolve().parent.parent


def staging(root: Path, step: int) -> Path:
    """An empty directory to write a checkpoint into; leftovers of a killed save are removed."""
    for leftover in root.glob("*.partial"):
        shutil.rmtree(leftover)
    folder = root / f"step-{step:08d}.partial"
    folder.mkdir(parents=True)
    return folder


def publish(staged: Path, content: Manifest) -> Path:
    """Makes a staged checkpoint, whose files are flushed, visible in one rename, and points at it.

    Killed before the rename, nothing has happened; after it, :func:`latest` finds the checkpoint with or without the
    pointer. Nothing is deleted here.
    """
    manifest.write(staged, content)
    final = staged.with_suffix("")
    staged.rename(final)
    manifest.flush(final.parent)
    _point(final.parent, final.name)
    return final


def prune(root: Path, rules: retention.Retention) -> None:
    """Deletes the checkpoints that ``rules`` let go; what they need to know is in the manifests."""
    for step in retention.doomed(candidates(root, rules.monitor), rules):
        _remove(root / f"step-{step:08d}")


def steps(run_dir: Path) -> list[int]:
    """Steps of the checkpoints of a run, intact or not."""
    return sorted(_step(folder) for folder in (run_dir / "checkpoints").glob(COMPLETE))


def candidates(root: Path, monitor: str | None) -> list[retention.Candidate]:
    """Every checkpoint under ``root`` as retention sees it; values of another metric than ``monitor`` do not count."""
    found = []
    for folder in sorted(root.glob(COMPLETE)):
        try:
            content = manifest.read(folder, "resume")
        except UserError:
            found.append(retention.Candidate(_step(folder), intact=False))
            continue
        value = content.value if content.monitor == monitor else None
        found.append(retention.Candidate(_step(folder), value, manifest.intact(folder, content)))
    return found


def forget_after(run_dir: Path, step: int) -> None:
    """Removes checkpoints of later steps: they belong to a future that a resumed run is about to replace."""
    root = run_dir / "checkpoints"
    kept = [folder for folder in sorted(root.glob(COMPLETE)) if _step(folder) <= step]
    # Pointed at first: a deletion that is cut short must not leave a pointer to what is gone.
    if kept:
        _point(root, kept[-1].name)
    else:
        (root / POINTER).unlink(missing_ok=True)
    for folder in sorted(set(root.glob(COMPLETE)) - set(kept)):
        _remove(folder)


def verify(folder: Path, key: str = "resume") -> Checkpoint:
    """Checks every file against the manifest; of several ranks, each hashes its share of the files.

    Raises:
        UserError: a file is missing, added, truncated, altered or exchanged; it is named with the rank that wrote it.
    """
    content = manifest.read(folder, key)
    manifest.check(folder, content, key, (distributed.rank(), distributed.world_size()))
    return Checkpoint(folder, content.step, content.layout)


def find(resume: str | None, run_dir: Path, key: str = "resume") -> Checkpoint | None:
    """The verified checkpoint that ``resume`` means: ``auto`` (the run directory's latest, if any) or a path.

    A path is a checkpoint directory or a run directory.

    Raises:
        UserError: the path holds no checkpoint, or the checkpoint is damaged. An older one is never taken silently.
    """
    if resume is None:
        return None
    if resume == "auto":
        folder = latest(run_dir)
        return None if folder is None else verify(folder, key)
    path = Path(resume)
    found = path if (path / MANIFEST).exists() or path.name.startswith("step-") else latest(path)
    if found is None and (stages := sorted(path.glob("stages/*/checkpoints"))):
        raise UserError(key, resume, f"one of its stages: {', '.join(str(stage.parent) for stage in stages)}")
    if found is None or not found.is_dir():
        allowed = "the path of a run or checkpoint directory"
        raise UserError(key, resume, f"auto, or {allowed}" if key == "resume" else allowed)
    return verify(found, key)


def agree(resume: str | None, run_dir: Path) -> Checkpoint | None:
    """:func:`find` by all ranks: none goes on before every file is verified and all mean the same. A collective.

    Raises:
        UserError: as ``find``, on the lowest rank that has something to say; or the ranks find different checkpoints.
        RunError: on the other ranks.
    """
    found: Checkpoint | None = None
    problem: tuple[str, Any, str] | None = None
    try:
        found = find(resume, run_dir)
    except UserError as error:
        problem = (error.key, error.value, error.allowed)
    told: Any = distributed.gather_objects((problem, None if found is None else found.folder.name))
    for speaker, (theirs, name) in enumerate(told):
        allowed = f"a folder that all ranks share (rank 0 finds {told[0][1]}, rank {speaker} finds {name})"
        if theirs is None and name != told[0][1] and told[0][0] is None:
            theirs, speaker = ("hydra.run.dir", str(run_dir), allowed), 0
        if theirs is not None:
            if distributed.rank() == speaker:
                raise UserError(*theirs)
            raise RunError(f"rank {speaker} has refused to start; its message tells why.")
    return found


def latest(run_dir: Path) -> Path | None:
    """The newest complete checkpoint directory of a run, whatever the pointer says.

    A save that was killed before its pointer was moved has still published a checkpoint. A pointer to a newer one than
    there is means that somebody deleted it, which is told.
    """
    root = run_dir / "checkpoints"
    complete = sorted(root.glob(COMPLETE))
    pointer = root / POINTER
    pointed = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
    newest = complete[-1] if complete else None
    if pointed > ("" if newest is None else newest.name):
        taken = "there is no other" if newest is None else f"the newest one left is {newest.name}"
        log.warning("%s names %s, which is gone: %s", pointer, pointed, taken)
    return newest


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _point(root: Path, name: str) -> None:
    partial = root / f".{POINTER}.tmp"
    with partial.open("w", encoding="utf-8") as file:
        file.write(name + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(root / POINTER)
    manifest.flush(root)


def _remove(folder: Path) -> None:
    # Renamed first: a deletion that is cut short must not leave a directory that looks complete.
    doomed = folder.rename(folder.with_suffix(".partial"))
    shutil.rmtree(doomed)
