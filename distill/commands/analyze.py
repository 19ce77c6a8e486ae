"""``distill analyze source=PATH trained=PATH out=DIR``: what training changed, coordinate by coordinate."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from distill.analysis.comparable import caveat
from distill.analysis.concentration import FRACTIONS, Magnitudes, magnitudes
from distill.analysis.naming import place
from distill.analysis.nulls import rounding_null
from distill.analysis.source import Folder, Match, match
from distill.analysis.sparsity import LABELS, PRECISIONS, TOLERANCES, Counts, Pair, compare, total_pair
from distill.analysis.tables import GROUP_COLUMNS, MEASURES, group_rows, measures, write_csv
from distill.errors import UserError

NULL_COLUMNS = tuple(f"null_sparsity_{label}" for label in LABELS)
TOP_COLUMNS = tuple(f"top_energy_{fraction:g}" for fraction in FRACTIONS)
TENSOR_COLUMNS = (
    *("tensor", "source_tensor", "group", "layer", "module", "shape", "source_dtype", "trained_dtype", "precision"),
    *MEASURES,
    *TOP_COLUMNS,
    *NULL_COLUMNS,
)
"""Columns of ``tensors.csv``: two rows (precisions) per tensor. ``top_energy_F`` is the share of ΣΔ² in the share F of
coordinates that moved most; ``null_sparsity_T`` the sparsity of a random update of the same norm."""


@dataclass
class Measured:
    """Everything ``analyze`` knows about the matched tensors, by trained name."""

    observed: dict[str, Pair] = field(default_factory=dict)
    null: dict[str, Pair] = field(default_factory=dict)
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)
    tops: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    top: dict[str, Magnitudes] = field(default_factory=lambda: {precision: Magnitudes() for precision in PRECISIONS})


def run(config: dict[str, Any], run_dir: Path) -> int:
    """Compares two Hugging Face folders and writes ``summary.json``, ``tensors.csv`` and ``groups.csv`` to ``out``.

    Keys: ``source``, ``trained`` (folders with safetensors), ``out`` (default: ``run_dir``), ``seed`` of the null.

    Raises:
        UserError: a folder cannot be read, no tensor matches, or a tensor holds NaN or infinity.
    """
    out = Path(config["out"] or run_dir)
    with Folder(Path(config["source"]), "source") as source, Folder(Path(config["trained"]), "trained") as trained:
        found = match(source.shapes, trained.shapes, source.tied, trained.tied)
        if not found.pairs:
            raise UserError("trained", config["trained"], f"a checkpoint of the architecture of {config['source']}")
        measured = _measure(source, trained, found, config.get("seed", 0))
        skipped = {"source": source.skipped, "trained": trained.skipped}
    summary = {"source": config["source"], "trained": config["trained"], **summarise(measured, found)}
    summary["unmatched"]["skipped"] = skipped
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_csv(out / "tensors.csv", TENSOR_COLUMNS, _tensor_rows(measured))
    write_csv(out / "groups.csv", (*GROUP_COLUMNS, *NULL_COLUMNS), _group_rows(measured))
    _show(summary, found)
    print(f"written to {out}")
    return 0


def _measure(source: Folder, trained: Folder, found: Match, seed: int) -> Measured:
    measured = Measured()
    for name, before in found.pairs:
        start, end = source.tensor(before), trained.tensor(name)
        pair = compare(start, end)
        if not all(counts.finite for counts in pair.values()):
            side = trained if bool(start.isfinite().all()) else source
            raise UserError(
                side.key, str(side.path), f"a checkpoint of finite weights ({name!r} holds NaN or infinity)"
            )
        norm = math.sqrt(pair["fp32"].update_energy)
        null = rounding_null(name, start, norm, end.dtype, seed)
        top = magnitudes(start, end)
        measured.observed[name], measured.null[name] = pair, null
        measured.heads[name] = {
            "tensor": name,
            "source_tensor": before,
            **place(name)._asdict(),
            "shape": "x".join(map(str, end.shape)),
            "source_dtype": str(start.dtype).removeprefix("torch."),
            "trained_dtype": str(end.dtype).removeprefix("torch."),
        }
        measured.tops[name] = {precision: _top(histogram) for precision, histogram in top.items()}
        measured.top = {precision: measured.top[precision] + top[precision] for precision in PRECISIONS}
    return measured


def _tensor_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    whole = total_pair(measured.observed.values())
    for name, head in measured.heads.items():
        for precision in PRECISIONS:
            yield {
                **head,
                "precision": precision,
                **measures(measured.observed[name][precision], whole[precision]),
                **measured.tops[name][precision],
                **_null(measured.null[name][precision]),
            }


def _top(histogram: Magnitudes) -> dict[str, float]:
    return {column: histogram.top_energy(share) for column, share in zip(TOP_COLUMNS, FRACTIONS, strict=True)}


def _null(counts: Counts) -> dict[str, float]:
    return {column: counts.sparsity(tolerance) for column, tolerance in zip(NULL_COLUMNS, TOLERANCES, strict=True)}


def _group_rows(measured: Measured) -> list[dict[str, Any]]:
    nulls = group_rows(measured.null)
    return [
        row | {f"null_{column}": null[column] for column in MEASURES if f"null_{column}" in NULL_COLUMNS}
        for row, null in zip(group_rows(measured.observed), nulls, strict=True)
    ]


def summarise(measured: Measured, found: Match) -> dict[str, Any]:
    """The model's numbers: sparsity beside its rounding null, norms, concentration, and every unmatched tensor."""
    whole, null = total_pair(measured.observed.values()), total_pair(measured.null.values())
    note = caveat(whole["fp32"].relative_norm)
    return {
        "tensors": len(found.pairs),
        "parameters": whole["bf16"].numel,
        "sparsity": {precision: _beside(whole[precision], null[precision]) for precision in PRECISIONS},
        "relative_norm": {precision: whole[precision].relative_norm for precision in PRECISIONS},
        "top_energy": {
            precision: {f"{share:g}": histogram.top_energy(share) for share in FRACTIONS}
            for precision, histogram in measured.top.items()
        },
        "notes": [] if note is None else [note],
        "unmatched": {
            "missing": found.missing,
            "extra": found.extra,
            "misshaped": found.misshaped,
            "tied": found.tied,
        },
    }


def _beside(observed: Counts, null: Counts) -> dict[str, dict[str, float]]:
    pairs = {label: (observed.sparsity(t), null.sparsity(t)) for label, t in zip(LABELS, TOLERANCES, strict=True)}
    return {label: {"observed": a, "null": b, "difference": a - b} for label, (a, b) in pairs.items()}


def _show(summary: Mapping[str, Any], found: Match) -> None:
    console = Console()
    table = Table("|Δ| <=", title=f"share of {summary['parameters']:,} coordinates")
    for precision in PRECISIONS:
        for column in ("observed", "null", "difference"):
            table.add_column(f"{precision}\n{column}", justify="right")
    for label in LABELS:
        cells = [summary["sparsity"][precision][label] for precision in PRECISIONS]
        shown = [(f"{c['observed']:.2%}", f"{c['null']:.2%}", f"{100 * c['difference']:+.2f}") for c in cells]
        table.add_row(label, *(text for triple in shown for text in triple))
    console.print(table)
    norms = summary["relative_norm"]
    console.print(f"relative norm: bf16 {norms['bf16']:.3e}, fp32 {norms['fp32']:.3e}", highlight=False)
    for note in summary["notes"]:
        console.print(note, highlight=False)
    if not found.complete:
        console.print(f"left out: {found} (all in summary.json)", highlight=False, markup=False)
