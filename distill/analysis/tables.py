"""Measurements as table rows, one per tensor or per part of the model and precision, with their documented columns."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.analysis.naming import GROUPS
from distill.analysis.sparsity import (
    LABELS,
    PRECISIONS,
    TOLERANCES,
    Counts,
    Pair,
    by_group,
    by_layer,
    by_module,
    group_by,
    total_pair,
)

SPARSITY_COLUMNS = tuple(f"sparsity_{label}" for label in LABELS)
MEASURES = ("numel", *SPARSITY_COLUMNS, "update_norm", "relative_norm", "energy_share")
"""``numel`` coordinates, share with abs(Δ) <= tolerance, ‖Δ‖, ‖Δ‖/‖θ₀‖ and the share of the whole model's ΣΔ²."""

GROUP_COLUMNS = ("scope", "name", "precision", *MEASURES)
"""``scope`` is model, group, layer or module; a module is named ``LAYER.MODULE``."""


def measures(counts: Counts, whole: Counts) -> dict[str, Any]:
    """The MEASURES of one part; an undefined number (movement of a source that is zero) is an empty cell."""
    values: dict[str, Any] = {"numel": counts.numel}
    values |= {
        column: counts.sparsity(tolerance) for column, tolerance in zip(SPARSITY_COLUMNS, TOLERANCES, strict=True)
    }
    values["update_norm"] = math.sqrt(counts.update_energy)
    values["relative_norm"] = counts.relative_norm if math.isfinite(counts.relative_norm) else ""
    values["energy_share"] = counts.energy_share(whole)
    return values


def parts(pairs: Mapping[str, Pair]) -> Iterator[tuple[str, str, Pair]]:
    """(scope, name, counts) of the model, its groups, its layers and the modules of each layer."""
    yield "model", "all", total_pair(pairs.values())
    groups = group_by(pairs, by_group)
    yield from (("group", name, groups[name]) for name in GROUPS if name in groups)
    yield from (("layer", str(layer), pair) for layer, pair in sorted(group_by(pairs, by_layer).items()))
    modules = sorted(group_by(pairs, by_module).items(), key=lambda item: item[0][0])
    yield from (("module", f"{layer}.{module}", pair) for (layer, module), pair in modules)


def group_rows(pairs: Mapping[str, Pair]) -> Iterator[dict[str, Any]]:
    """Rows of GROUP_COLUMNS from the counts of every tensor."""
    whole = total_pair(pairs.values())
    for scope, name, pair in parts(pairs):
        for precision in PRECISIONS:
            head = {"scope": scope, "name": name, "precision": precision}
            yield head | measures(pair[precision], whole[precision])


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)
