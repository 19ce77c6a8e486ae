"""What became of the jobs of a sweep: one record per job, ``sweep.json`` of all, and the table at the end."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

FOLDER, FILE, STOP = ".jobs", "sweep.json", "stop"
HEADLINES = ("eval/accuracy", "eval/reverse_kl", "loss")
"""Metrics that tell how good a run is; the first that it has recorded stands for it."""


@dataclass(frozen=True)
class Record:
    """``status`` is ``pending``, ``running``, ``ok``, ``failed`` or ``interrupted``; ``rerun`` runs this job alone.

    ``exit_status`` is negative for a signal that killed the job, ``started`` a Unix time, ``metric`` name and value.
    """

    number: int
    overrides: list[str]
    dir: str
    rerun: str
    status: str = "pending"
    exit_status: int | None = None
    error: str | None = None
    metric: dict[str, float] = field(default_factory=dict)
    started: float = 0.0
    seconds: float | None = None
    host: str | None = None
    pid: int | None = None
    attempt: str = ""


def write(home: Path, entry: Record) -> None:
    """Keeps a job's record, and brings ``sweep.json`` up to date."""
    _write(home / FOLDER / f"{entry.number}.json", asdict(entry))
    update(home)


def read(home: Path, number: int) -> Record | None:
    """A job's record; None if it never started."""
    path = home / FOLDER / f"{number}.json"
    return Record(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def open_sweep(home: Path, content: dict[str, Any], pending: Sequence[Record]) -> None:
    """Writes ``sweep.json`` before any job starts: ``content`` about the sweep as a whole, and the planned jobs."""
    clear_stop(home)
    _write(home / FILE, content | {"jobs": [asdict(entry) for entry in pending]})
    update(home)


def update(home: Path) -> list[Record]:
    """Takes the jobs' own records over into ``sweep.json``; returns all jobs by number.

    A job that should be running on this machine, but is not, was interrupted with all that started it.
    """
    path = home / FILE
    if not path.is_file():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    entries = [_alive(read(home, planned["number"]) or Record(**planned)) for planned in content["jobs"]]
    _write(path, content | {"jobs": [asdict(entry) for entry in entries]})
    return entries


def stop(home: Path, number: int) -> None:
    """Lets no further job of the sweep start and passes a signal on to those that run on this machine."""
    (home / FOLDER / STOP).write_text(str(number), encoding="utf-8")
    for path in (home / FOLDER).glob("*.json"):
        entry = Record(**json.loads(path.read_text(encoding="utf-8")))
        if entry.status == "running" and entry.pid is not None and entry.host == socket.gethostname():
            try:
                os.kill(entry.pid, number)
            except ProcessLookupError:
                continue


def clear_stop(home: Path) -> None:
    """Makes way for jobs: an earlier attempt may have been stopped."""
    (home / FOLDER).mkdir(parents=True, exist_ok=True)
    (home / FOLDER / STOP).unlink(missing_ok=True)


def stopping(home: Path) -> int:
    """The signal that the sweep is to stop with, or 0."""
    path = home / FOLDER / STOP
    return int(path.read_text(encoding="utf-8") or signal.SIGTERM) if path.is_file() else 0


def headline(run_dir: Path) -> dict[str, float]:
    """The last value of the first of HEADLINES that a run has recorded."""
    return next(({key: value} for key in HEADLINES if (value := last(run_dir, key)) is not None), {})


def last(run_dir: Path, key: str) -> float | None:
    """The last value of a metric in a run's ``metrics.jsonl``; None if there is none."""
    found = [row[key] for row in _metrics(run_dir) if row.get(key) is not None]
    return float(found[-1]) if found else None


def measured(run_dir: Path) -> set[str]:
    """The keys in a run's ``metrics.jsonl``."""
    return {key for row in _metrics(run_dir) for key in row}


def _metrics(run_dir: Path) -> Iterator[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            yield json.loads(line)
        except ValueError:
            # The last line of a run that was killed while it wrote.
            continue


def table(home: Path, entries: Sequence[Record]) -> Iterator[str]:
    """Lines: number, status, headline metric, what sets the job apart, and its directory."""
    common = set.intersection(*(set(entry.overrides) for entry in entries)) if len(entries) > 1 else set()
    rows = [("job", "status", "metric", "overrides", "directory")]
    for entry in entries:
        # What an unfinished run measured last, at its start perhaps, is no result.
        measured = entry.metric.items() if entry.status == "ok" else ()
        metric = ", ".join(f"{key} {value:.4g}" for key, value in measured) or "–"
        own = " ".join(word for word in entry.overrides if word not in common) or "–"
        rows.append((str(entry.number), entry.status, metric, own, _below(home, entry.dir)))
    yield from aligned(rows)
    for entry in entries:
        if entry.status in ("failed", "interrupted"):
            yield f"\njob {entry.number} {entry.status}: {entry.error or 'it left no word'}\n  again: {entry.rerun}"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as lines whose cells begin in the same columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield from ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _below(home: Path, folder: str) -> str:
    return str(Path(folder).relative_to(home)) if folder and Path(folder).is_relative_to(home) else folder or "–"


def _alive(entry: Record) -> Record:
    if entry.status != "running" or entry.host != socket.gethostname() or entry.pid is None:
        return entry
    try:
        os.kill(entry.pid, 0)
    except ProcessLookupError:
        return replace(entry, status="interrupted", error="the process that ran it is gone")
    return entry


def _write(path: Path, content: dict[str, Any]) -> None:
    # Several processes may write the same file.
    partial = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    partial.write_text(json.dumps(content, indent=2), encoding="utf-8")
    partial.replace(path)
