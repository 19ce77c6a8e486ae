"""Reads a run directory: finished, crashed, still running or copied, whatever files are there and however they end."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from distill.config import stages
from distill.errors import UserError

CONFIG, ENVIRONMENT, METRICS, SAMPLES = FILES = ("config.yaml", "environment.json", "metrics.jsonl", "samples.jsonl")

SWEEP = "sweep.json"
"""What a sweep says of its jobs, in the folder that holds them."""

Point = tuple[int, float]


@dataclass(frozen=True)
class RunRecord:
    """What the files say. ``notes`` name whatever is missing or unreadable; metrics are sorted by step; ``written`` is
    the time of the last record, None without any; ``job`` is what a sweep says of the run, empty outside one."""

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: tuple[dict[str, Any], ...]
    samples: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    written: float | None
    job: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def last_step(self) -> int:
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def planned_steps(self) -> int | None:
        steps = [at(one, ("trainer", "max_steps")) for one in stages.recorded(self.config)]
        return sum(steps) if all(isinstance(one, int) for one in steps) else None

    @property
    def finished(self) -> bool:
        return self.planned_steps is not None and self.last_step >= self.planned_steps

    @property
    def seconds(self) -> float:
        """Seconds of training until the last record."""
        return max((value for _, value in self.series("time")), default=0.0)

    def setting(self, *keys: str) -> Any:
        """A value of the configuration, None where it has no such key."""
        return at(self.config, keys)

    def series(self, key: str) -> list[Point]:
        """(step, value) wherever the metric was recorded and is finite; a repeated step counts with its last value."""
        return [(step, float(value)) for step, value in self._columns.get(key, {}).items() if _is_number(value)]

    @cached_property
    def _columns(self) -> dict[str, dict[int, Any]]:
        """Metric → step → value, so that a metric is found without reading every record."""
        found: dict[str, dict[int, Any]] = {}
        for record in self.metrics:
            for key, value in record.items():
                found.setdefault(key, {})[int(record["step"])] = value
        return found

    def first(self, key: str) -> float | None:
        return next((value for _, value in self.series(key)), None)

    def last(self, key: str) -> float | None:
        return next((value for _, value in reversed(self.series(key))), None)

    def latest(self, prefix: str) -> dict[str, float]:
        """The last recorded metrics whose name starts with ``prefix``, the prefix removed."""
        found: dict[str, float] = {}
        for record in self.metrics:
            found |= {key.removeprefix(prefix): value for key, value in record.items() if key.startswith(prefix)}
        return {key: float(value) for key, value in found.items() if _is_number(value)}


def at(config: dict[str, Any], keys: Sequence[str]) -> Any:
    """The value in nested sections, None where there is none."""
    value: Any = config
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def collect(run_dir: Path) -> RunRecord:
    """Reads the FILES of a run as far as they are there and readable.

    Raises:
        UserError: there is none of these files, or one that this user may not read.
    """
    if not any((run_dir / name).is_file() for name in FILES):
        raise UserError("runs", str(run_dir), f"a run directory (with {METRICS}, {CONFIG}, …)")
    return read(run_dir)


def read(run_dir: Path, *, with_samples: bool = True) -> RunRecord:
    """As ``collect``, and of a folder without any of the FILES a record of nothing: a job that failed at its start."""
    notes: list[str] = []
    try:
        config = _mapping(run_dir / CONFIG, yaml.safe_load, notes)
        environment = _mapping(run_dir / ENVIRONMENT, json.loads, notes)
        metrics = [record for record in _lines(run_dir / METRICS, notes) if isinstance(record.get("step"), int)]
        samples = _lines(run_dir / SAMPLES, notes) if with_samples else []
        written = (run_dir / METRICS).stat().st_mtime if metrics else None
        job = jobs(run_dir.resolve().parent).get(run_dir.resolve().name, {})
    except OSError as error:
        raise UserError("runs", str(error.filename), f"files that can be read ({error.strerror})") from None
    metrics.sort(key=lambda record: int(record["step"]))
    return RunRecord(run_dir, config, environment, tuple(metrics), tuple(samples), tuple(notes), written, job)


def jobs(home: Path) -> dict[str, dict[str, Any]]:
    """Folder name → what the sweep in ``home`` says of that job, also of one that never began; empty without a sweep.

    Names, not paths: a sweep may have been moved.
    """
    if not (home / SWEEP).is_file():
        return {}
    entries = _mapping(home / SWEEP, json.loads, []).get("jobs")
    listed = entries if isinstance(entries, list) else []
    found = [entry for entry in listed if isinstance(entry, dict) and isinstance(entry.get("dir"), str)]
    return {Path(entry["dir"]).name: entry for entry in found if entry["dir"]}


def _mapping(path: Path, parse: Any, notes: list[str]) -> dict[str, Any]:
    if not path.is_file():
        notes.append(f"{path.name} is missing.")
        return {}
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):
        notes.append(f"{path.name} is not readable.")
        return {}
    return content


def _lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        notes.append(f"{path.name} is missing.")
        return []
    records = []
    # Not splitlines: a sample's text may hold U+2028 or U+0085.
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        lines = list(file)
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            end = " (the last: the run was cut off while writing)" if number == len(lines) else ""
            notes.append(f"{path.name}: line {number}{end} is not readable and left out.")
    return records


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
