"""The tables of an analysis page: every number beside its null, groups, layers × modules, and what had no partner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.analysis.naming import GROUPS, place
from distill.report.analysis_folder import PRECISIONS, Analysis, Cell, cell, cells
from distill.report.vocabulary import FAMILIES, Quantity, quantity

BY_GROUP = (
    "sparsity_0",
    "sparsity_1e-5",
    "top_energy_0.01",
    "enrichment_low_0.1_0",
    "enrichment_principal_0.1_0",
    "stable_rank",
    "spectral_energy_16",
    "projection_joint_0.1",
)
"""Columns of the table of groups that have a null; those that were not measured are left out."""

FAMILIAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Modules in the order in which a forward pass meets them."""


@dataclass(frozen=True)
class Line:
    """One quantity in both precisions."""

    what: Quantity
    bf16: Cell | None
    fp32: Cell | None


@dataclass(frozen=True)
class GroupRow:
    """One part of the model: what has no null of its own, then a cell per column of its table."""

    name: str
    weights: Cell | None
    energy_share: Cell | None
    relative_norm: Cell | None
    cells: list[Cell | None]


@dataclass(frozen=True)
class GroupTable:
    """The model and its groups in one precision."""

    precision: str
    columns: list[Quantity]
    rows: list[GroupRow]


@dataclass(frozen=True)
class Grid:
    """One number per module (row) and layer (column), None where there is none."""

    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]

    @property
    def known(self) -> list[float]:
        return [value for row in self.values for value in row if value is not None]


def families(summary: Mapping[str, Any]) -> dict[str, list[Line]]:
    """Every metric of the whole model that has a name in words, by family."""
    both = {name: cells(summary.get("metrics", {}).get(name, {})) for name in PRECISIONS}
    found: dict[str, list[Line]] = {family: [] for family in FAMILIES}
    for key in dict.fromkeys([*both["bf16"], *both["fp32"]]):
        what = quantity(key)
        if what is not None:
            found[what.family].append(Line(what, both["bf16"].get(key), both["fp32"].get(key)))
    return {family: lines for family, lines in found.items() if lines}


def by_group(analysis: Analysis, precision: str) -> GroupTable | None:
    """The whole model, then its groups, None when the table was not written."""
    rows = [*analysis.scope("model", precision), *analysis.scope("group", precision)]
    names = [name for key in BY_GROUP if (name := _column(rows, key)) is not None]
    columns = [what for name in names if (what := quantity(name)) is not None]
    shown = [
        GroupRow(
            "all" if row["scope"] == "model" else row["name"],
            cell(row, "numel"),
            cell(row, "energy_share"),
            cell(row, "relative_norm"),
            [cell(row, what.key) for what in columns],
        )
        for row in rows
    ]
    return GroupTable(precision, columns, shown) if shown else None


def _column(rows: Sequence[Mapping[str, str]], key: str) -> str | None:
    """The column of a metric: itself, or its median over matrices; None when no row has a number there."""
    return next((name for name in (key, f"{key}.median") if any(cell(row, name) for row in rows)), None)


def grid(analysis: Analysis, key: str, *, difference: bool = False) -> Grid | None:
    """A metric of each module of each layer in bf16, or its difference from the null; None without a layer that has it.

    Layers in order; of the modules the familiar ones first, then as they come in the table, by group. Norms are not in
    it: the scale of their few weights would hide all other differences.
    """
    rows = analysis.scope("module", "bf16")
    column = _column(rows, key)
    if column is None:
        return None
    values: dict[tuple[str, str], float] = {}
    for row in rows:
        found = cell(row, column)
        value = None if found is None else found.difference if difference else found.observed
        layer, _, module = row["name"].partition(".")
        if value is not None and _group(module) != "norm":
            values[module, layer] = value
    modules = sorted(dict.fromkeys(module for module, _ in values), key=_rank)
    layers = sorted({layer for _, layer in values}, key=int)
    table = [[values.get((module, layer)) for layer in layers] for module in modules]
    return Grid(modules, layers, table) if values else None


def _rank(module: str) -> int:
    return FAMILIAR.index(module) if module in FAMILIAR else len(FAMILIAR) + GROUPS.index(_group(module))


def _group(module: str) -> str:
    return place(f"{module}.weight").group


def unmatched(summary: Mapping[str, Any]) -> dict[str, list[str]]:
    """Tensors that took no part, by reason; empty when all did."""
    reasons = {
        "missing": "in the source only",
        "extra": "in the trained model only",
        "misshaped": "of another shape",
        "tied": "tied to a tensor that was counted",
    }
    left: Mapping[str, Any] = summary.get("unmatched") or {}
    found = {words: [*map(str, left.get(key) or ())] for key, words in reasons.items()}
    for side, names in (left.get("skipped") or {}).items():
        found[f"skipped in {side}: no weights of the model"] = [*map(str, names)]
    for key, names in (left.get("other") or {}).items():
        found[f"of the other run, {reasons[key].replace('trained model', 'other run')}"] = [*map(str, names)]
    return {words: names for words, names in found.items() if names}
