"""Reads the folder that ``distill analyze`` writes: a summary, tables of tensors and groups, and spectra."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.errors import UserError

PRECISIONS = ("bf16", "fp32")
ROUNDING = 1e-12
"""Relative differences below this are of the arithmetic: equal draws differ by the rounding of their mean."""
Row = Mapping[str, str]


@dataclass(frozen=True)
class Cell:
    """One number beside its null: mean, standard deviation over the draws, difference, and difference in deviations.

    None is what was not measured or is not defined.
    """

    observed: float
    null: float | None = None
    spread: float | None = None
    difference: float | None = None
    z: float | None = None


@dataclass(frozen=True)
class Analysis:
    """What the files of one analysis say, as they say it."""

    summary: Mapping[str, Any]
    tensors: list[dict[str, str]] = field(default_factory=list)
    groups: list[dict[str, str]] = field(default_factory=list)
    spectra: Mapping[str, Any] = field(default_factory=dict)

    def scope(self, scope: str, precision: str) -> list[dict[str, str]]:
        """Rows of ``groups.csv`` of one scope (model, group, layer, module)."""
        return [row for row in self.groups if row.get("scope") == scope and row.get("precision") == precision]


def read(folder: Path) -> Analysis:
    """Everything in ``folder``; a table that is not there is empty.

    Raises:
        UserError: ``summary.json`` is missing, or a file is broken.
    """
    summary = _json(folder / "summary.json")
    if summary is None:
        raise UserError("out", str(folder), "a folder written by `distill analyze` (summary.json is missing)")
    spectra = _json(folder / "spectra.json") or {}
    return Analysis(summary, _csv(folder / "tensors.csv"), _csv(folder / "groups.csv"), spectra)


def _json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError("out", str(path), f"a JSON file as `distill analyze` writes it ({error})") from error
    if not isinstance(found, dict):
        raise UserError("out", str(path), "a JSON object as `distill analyze` writes it")
    return found


def _csv(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]


def cells(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Cell]:
    """The metrics of one precision of ``summary.json``, those without an observed number left out."""
    found = {}
    for key, value in metrics.items():
        observed = finite(value.get("observed"))
        if observed is not None:
            found[key] = _cell(observed, *(value.get(name) for name in ("null", "null_sd", "difference", "z")))
    return found


def cell(row: Row, key: str) -> Cell | None:
    """One number of a row of a table with the columns that stand beside it, None where it is empty."""
    observed = finite(row.get(key))
    if observed is None:
        return None
    return _cell(observed, *(row.get(f"{name}_{key}") for name in ("null", "null_sd", "difference", "z")))


def _cell(observed: float, *beside: Any) -> Cell:
    null, spread, difference, z = map(finite, beside)
    if null is not None and difference is not None and abs(difference) < ROUNDING * max(abs(observed), abs(null)):
        difference = 0.0
    return Cell(observed, null, spread, difference, z)


def finite(value: Any) -> float | None:
    """A number from JSON or from a CSV cell; None for what is empty, not a number or not finite."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
