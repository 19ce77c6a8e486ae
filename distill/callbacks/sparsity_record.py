"""A measurement of the live student as metrics, and as the rows of its table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from distill.analysis.sparsity import LABELS, PRECISIONS, TOLERANCES, Pair
from distill.analysis.tables import GROUP_COLUMNS, SPARSITY_COLUMNS, group_rows, parts
from distill.callbacks.sparsity_measure import Measurement

BESIDE = ("null", "since_last")
COLUMNS = (*GROUP_COLUMNS, *(f"{prefix}_{column}" for prefix in BESIDE for column in SPARSITY_COLUMNS))
"""Of the tables: those of ``distill analyze``'s groups, the null's sparsity and that since the last measurement."""


def metrics(measured: Measurement) -> dict[str, float]:
    """The numbers of ``callbacks.sparsity.KEYS``, all but the time."""
    found = _sparsity("sparsity", measured.since_start) | _sparsity("sparsity_null", measured.null)
    (_, _, whole), *rest = parts(measured.since_start)
    found["update/relative_norm"] = whole["bf16"].relative_norm
    found["update/relative_norm_fp32"] = whole["fp32"].relative_norm
    for scope, name, pair in rest:
        if scope == "module":
            found[f"sparsity/module/{name}"] = pair["bf16"].sparsity()
            continue
        found[f"update/relative_norm/{scope}/{name}"] = pair["bf16"].relative_norm
        found[f"update/energy/{scope}/{name}"] = pair["bf16"].energy_share(whole["bf16"])
    if measured.since_last is not None:
        found |= _sparsity("sparsity_since_last", measured.since_last)
        _, _, last = next(parts(measured.since_last))
        found["update_since_last/relative_norm"] = last["bf16"].relative_norm
        found["update_since_last/relative_norm_fp32"] = last["fp32"].relative_norm
    return found


def _sparsity(prefix: str, pairs: Mapping[str, Pair]) -> dict[str, float]:
    """Of the whole model in each precision at each tolerance, and of groups and layers at the headline's."""
    (_, _, whole), *rest = parts(pairs)
    found = {
        f"{prefix}/{precision}/{label}": whole[precision].sparsity(tolerance)
        for precision in PRECISIONS
        for label, tolerance in zip(LABELS, TOLERANCES, strict=True)
    }
    return found | {
        f"{prefix}/{scope}/{name}": pair["bf16"].sparsity() for scope, name, pair in rest if scope != "module"
    }


def rows(measured: Measurement) -> Iterator[dict[str, Any]]:
    """Rows of COLUMNS: both precisions of the model, every group, layer and module; unknown cells are empty."""
    beside = dict(zip(BESIDE, (measured.null, measured.since_last), strict=True))
    others = [_cells(prefix, pairs) for prefix, pairs in beside.items() if pairs is not None]
    for index, row in enumerate(group_rows(measured.since_start)):
        for cells in others:
            row |= cells[index]
        yield row


def _cells(prefix: str, pairs: Mapping[str, Pair]) -> list[dict[str, Any]]:
    found = ({column: row[column] for column in SPARSITY_COLUMNS} for row in group_rows(pairs))
    return [
        {f"{prefix}_{column}": "" if math.isnan(value) else value for column, value in row.items()} for row in found
    ]
