"""Reads a run directory: finished, crashed, still running or copied, whatever files are there and however they end."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distill.errors import UserError

CONFIG, ENVIRONMENT, METRICS, SAMPLES = FILES = ("config.yaml", "environment.json", "metrics.jsonl", "samples.jsonl")

Point = tuple[int, float]


@dataclass(frozen=True)
class RunRecord:
    """What the files say. ``notes`` name whatever is missing or unreadable; metrics are sorted by step."""

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: tuple[dict[str, Any], ...]
    samples: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def last_step(self) -> int:
        return max((int(record["step"]) for record in self.metrics), default=0)

    @property
    def planned_steps(self) -> int | None:
        steps = self.setting("trainer", "max_steps")
        return steps if isinstance(steps, int) else None

    @property
    def finished(self) -> bool:
        return self.planned_steps is not None and self.last_step >= self.planned_steps

    @property
    def seconds(self) -> float:
        """Seconds of training until the last record."""
        return max((value for _, value in self.series("time")), default=0.0)

    def setting(self, *keys: str) -> Any:
        """A value of the configuration, None where it has no such key."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def series(self, key: str) -> list[Point]:
        """(step, value) wherever the metric was recorded and is finite; a repeated step counts with its last value."""
        found = {int(record["step"]): record[key] for record in self.metrics if key in record}
        return [(step, float(value)) for step, value in found.items() if _is_number(value)]

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


def collect(run_dir: Path) -> RunRecord:
    """Reads the FILES of a run as far as they are there and readable.

    Raises:
        UserError: there is none of these files.
    """
    if not any((run_dir / name).is_file() for name in FILES):
        raise UserError("runs", str(run_dir), f"a run directory (with {METRICS}, {CONFIG}, …)")
    notes: list[str] = []
    config = _mapping(run_dir / CONFIG, yaml.safe_load, notes)
    environment = _mapping(run_dir / ENVIRONMENT, json.loads, notes)
    metrics = [record for record in _lines(run_dir / METRICS, notes) if isinstance(record.get("step"), int)]
    samples = _lines(run_dir / SAMPLES, notes)
    metrics.sort(key=lambda record: int(record["step"]))
    return RunRecord(run_dir, config, environment, tuple(metrics), tuple(samples), tuple(notes))


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
