"""What ``distill analyze`` writes: ``summary.json``, ``tensors.csv``, ``groups.csv`` and ``spectra.json``."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distill.analysis.comparable import caveat
from distill.analysis.naming import place
from distill.analysis.scopes import OF_SCOPE, OF_TENSOR, WITHOUT_NULL, Beside, of_scope, of_tensor, scopes
from distill.analysis.sparsity import PRECISIONS
from distill.analysis.tables import write_csv
from distill.analysis.tensor import Measured

PREFIXES = ("", "null_", "null_sd_", "difference_", "z_")
"""Before a metric's name: observed, mean and standard deviation of the null's draws, difference, and that over the
standard deviation."""
FILES = ("tensors.csv", "groups.csv", "spectra.json", "summary.json")
HEAD = ("tensor", "source_tensor", "group", "layer", "module", "shape", "source_dtype", "trained_dtype", "precision")


def _columns(metrics: tuple[str, ...]) -> Iterator[str]:
    for metric in metrics:
        yield from (f"{prefix}{metric}" for prefix in PREFIXES if not prefix or metric not in WITHOUT_NULL)


TENSOR_COLUMNS = (*HEAD, *_columns(OF_TENSOR))
GROUP_COLUMNS = ("scope", "name", "precision", *_columns(OF_SCOPE))

Heads = Mapping[str, Mapping[str, Any]]
"""By trained name, what a tensor is: HEAD without ``precision``."""


def head(name: str, before: str, shape: tuple[int, ...], source_dtype: str, trained_dtype: str) -> dict[str, Any]:
    """The first columns of a tensor's rows."""
    where = place(name)._asdict()
    size = "x".join(map(str, shape))
    return {"tensor": name, "source_tensor": before, **where, "shape": size} | {
        "source_dtype": source_dtype,
        "trained_dtype": trained_dtype,
    }


def write(out: Path, heads: Heads, found: Mapping[str, Measured], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Writes FILES into ``out`` and returns the summary, which has ``facts`` besides what is measured.

    Those of an earlier analysis go first: interrupted, it leaves no table beside another analysis' tables.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    everything = [*found.values()]
    write_csv(out / "tensors.csv", TENSOR_COLUMNS, _tensor_rows(heads, found))
    scoped = {
        (scope, name, precision): of_scope([found[each] for each in members], everything, precision)
        for scope, name, members in scopes(found)
        for precision in PRECISIONS
    }
    rows = ({"scope": s, "name": n, "precision": p, **_row(numbers)} for (s, n, p), numbers in scoped.items())
    write_csv(out / "groups.csv", GROUP_COLUMNS, rows)
    _json(out / "spectra.json", {name: each for name in found if (each := _spectrum(found[name]))})
    model = {precision: scoped["model", "all", precision] for precision in PRECISIONS}
    groups = dict.fromkeys(name for scope, name, _ in scoped if scope == "group")
    norm = {
        precision: model[precision]["relative_norm"].observed
        for precision in PRECISIONS
        if "relative_norm" in model[precision]
    }
    note = caveat(norm["fp32"]) if "fp32" in norm else None
    summary = {
        **facts,
        "tensors": len(found),
        "parameters": int(model["bf16"]["numel"].observed),
        "relative_norm": norm,
        "decomposition_error": max((part.error for each in everything for part in each.observed.values()), default=0.0),
        "metrics": {precision: _plain(numbers) for precision, numbers in model.items()},
        "groups": {name: {p: _plain(scoped["group", name, p]) for p in PRECISIONS} for name in groups},
        "notes": [] if note is None else [note],
    }
    _json(out / "summary.json", summary)
    return summary


def _tensor_rows(heads: Heads, found: Mapping[str, Measured]) -> Iterator[dict[str, Any]]:
    everything = [*found.values()]
    for name, measured in found.items():
        for precision in PRECISIONS:
            yield {**heads[name], "precision": precision, **_row(of_tensor(measured, everything, precision))}


def _row(numbers: Mapping[str, Beside]) -> dict[str, float]:
    """Cells of a row; what is not defined is an empty cell."""
    cells: dict[str, float] = {}
    for metric, value in numbers.items():
        fields = zip(PREFIXES, asdict(value).values(), strict=True)
        cells |= {f"{prefix}{metric}": number for prefix, number in fields if number is not None}
    return cells


def _plain(numbers: Mapping[str, Beside]) -> dict[str, dict[str, float | None]]:
    return {metric: asdict(value) for metric, value in numbers.items()}


def _spectrum(measured: Measured) -> dict[str, Any] | None:
    observed = measured.observed["bf16"].spectrum
    if not observed:
        return None
    nulls = [draw["bf16"].spectrum for draw in measured.draws if len(draw["bf16"].spectrum) == len(observed)]
    mean = [statistics.fmean(points) for points in zip(*nulls, strict=True)] if nulls else None
    return {"observed": list(observed), "null": mean}


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
