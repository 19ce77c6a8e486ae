"""From the elements of ``runs`` to run directories: a run, a sweep, a folder of runs, or a pattern of any of these."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from distill.errors import UserError
from distill.report.collect import FILES, METRICS, SWEEP, jobs

MULTIRUN = "multirun.yaml"
"""Hydra's record of a sweep: beside it, every numbered folder is a job, also one that left nothing else."""
JOB = re.compile(r"(\d+)(-|$)")


def run_dirs(elements: Sequence[str]) -> list[Path]:
    """The run directories in the order given, the jobs of a sweep by number.

    Raises:
        UserError: an element names nothing, holds no run, or a run that another element already named.
    """
    found: dict[Path, str] = {}
    for element in elements:
        for folder in _expand(element):
            if folder.resolve() in found:
                raise UserError("runs", element, f"runs that are not listed yet ({folder} is)")
            found[folder.resolve()] = str(folder)
    return [Path(name) for name in found.values()]


def holder(folders: Sequence[Path]) -> Path:
    """The deepest folder that holds all of several runs, or the folder of a single one."""
    paths = [folder.resolve() for folder in folders]
    if len(paths) == 1:
        return folders[0]
    return next(parent for parent in paths[0].parents if all(path.is_relative_to(parent) for path in paths))


def job_number(folder: Path) -> int | None:
    """The number of a sweep's job, None for any other folder."""
    found = JOB.match(folder.name)
    in_sweep = found is not None and any((folder.parent / name).is_file() for name in (MULTIRUN, SWEEP))
    return int(found[1]) if found is not None and in_sweep else None


def natural(path: Path) -> list[tuple[bool, int, str]]:
    """A sort key that puts ``2-…`` before ``10-…``."""
    parts = re.split(r"(\d+)", str(path))
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _expand(element: str) -> list[Path]:
    path = Path(element).expanduser()
    if path.is_dir():
        folders = [path]
    elif glob.has_magic(element):
        folders = sorted((Path(name) for name in glob.glob(str(path))), key=natural)
    else:
        raise UserError("runs", element, "existing run directories, sweep directories or patterns of them")
    runs = [run for folder in folders for run in _runs_in(folder)]
    if not runs:
        raise UserError("runs", element, f"a run directory (with {METRICS}, …), or a sweep or pattern that holds one")
    return runs


def _runs_in(folder: Path) -> Iterator[Path]:
    if _is_run(folder):
        yield folder
    elif folder.is_dir():
        planned = [folder / name for name in jobs(folder)]
        yield from filter(_is_run, sorted({*folder.iterdir(), *planned}, key=natural))


def _is_run(folder: Path) -> bool:
    if any((folder / name).is_file() for name in FILES) or folder.name in jobs(folder.parent):
        return True
    return folder.is_dir() and job_number(folder) is not None
