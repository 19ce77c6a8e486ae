"""``distill analyze source=PATH trained=PATH out=DIR``: what training changed, beside what rounding alone would."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from distill.analysis import outputs
from distill.analysis.source import Folder, Match, match
from distill.analysis.sparsity import LABELS, PRECISIONS
from distill.analysis.stream import measured, work
from distill.analysis.tensor import Measured, Options
from distill.commands.countdown import countdown
from distill.errors import UserError
from distill.report.analysis import clear, render
from distill.report.vocabulary import quantity

SHOWN = {
    "top_energy_0.01": "energy in the top 1 % coordinates",
    "coverage_low_0.1_0": "moved, among the 10 % smallest weights",
    "coverage_principal_0.1_0": "moved, among the 10 % principal weights",
    "rank_1e-6.median": "rank (σ > 1e-6 σ₁, share)",
    "stable_rank.median": "stable rank",
    "spectral_energy_16.median": "energy in the top 16 directions",
    "projection_joint_0.1.median": "energy in the source's top 10 % directions",
    "overlap_of_trained_0": "moved here, moved there too",
    "observed_over_expected_0": "moved in both, over chance",
}
"""Metrics on the screen besides sparsity; of matrices the median."""


def run(config: dict[str, Any], run_dir: Path) -> int:
    """Compares two Hugging Face checkpoints and writes tables, plots and a page to ``out`` (docs/analysis.md).

    Raises:
        UserError: a checkpoint cannot be read, no tensor matches, or a tensor holds NaN or infinity.
    """
    began = time.perf_counter()
    options = Options(config["seed"], config["null_draws"], config["spectral"], config["max_exact_dim"])
    with ExitStack() as files:
        source, trained, other = (
            files.enter_context(Folder(Path(config[key]), key)) if config[key] else None
            for key in ("source", "trained", "other")
        )
        assert source is not None
        assert trained is not None
        found = _matched(source, trained)
        others = None if other is None else _matched(source, other)
        results, heads = _measure(source, trained, found, other, others, options)
        facts = {key: config[key] for key in ("source", "trained", "other", "seed", "null_draws")}
        facts["unmatched"] = _unmatched(source, trained, found) | _unmatched_other(other, others)
        facts["timing"] = {"seconds": round(time.perf_counter() - began, 3)}
        out = Path(config["out"])
        clear(out)
        summary = outputs.write(out, heads, results, facts)
    page = render(out)
    _show(summary, found)
    print(f"report: {page}")
    return 0


def _matched(source: Folder, trained: Folder) -> Match:
    found = match(source.shapes, trained.shapes, source.tied, trained.tied)
    if not found.pairs:
        allowed = f"a checkpoint of the architecture of {source.path} (no tensor fits: {found})"
        raise UserError(trained.key, str(trained.path), allowed)
    return found


def _measure(
    source: Folder, trained: Folder, found: Match, other: Folder | None, others: Match | None, options: Options
) -> tuple[dict[str, Measured], dict[str, dict[str, Any]]]:
    results, heads = dict[str, Measured](), dict[str, dict[str, Any]]()
    backwards = {} if others is None else {before: after for after, before in others.pairs}
    whole = sum(work(trained.shapes[name]) for name, _ in found.pairs)
    with countdown("analyze", whole) as advance:
        for name, result in measured(source, trained, found, other, backwards, options):
            results[name] = result
            advance(work(trained.shapes[name]))
    for name, before in found.pairs:
        heads[name] = outputs.head(name, before, trained.shapes[name], source.dtype(before), trained.dtype(name))
    return results, heads


def _unmatched(source: Folder, trained: Folder, found: Match) -> dict[str, Any]:
    skipped = {"source": source.skipped, "trained": trained.skipped}
    named = {"missing": found.missing, "extra": found.extra, "misshaped": found.misshaped, "tied": found.tied}
    return {**named, "skipped": skipped}


def _unmatched_other(other: Folder | None, others: Match | None) -> dict[str, Any]:
    if other is None or others is None:
        return {}
    return {"other": {"missing": others.missing, "extra": others.extra, "misshaped": others.misshaped}}


def _show(summary: Mapping[str, Any], found: Match) -> None:
    console = Console()
    table = Table("", title=f"{summary['parameters']:,} coordinates, {summary['tensors']} tensors")
    for precision in PRECISIONS:
        for column in ("observed", "null", "z"):
            table.add_column(f"{precision}\n{column}", justify="right")
    wanted = {f"sparsity_{label}": f"did not move, |Δ| <= {label}" for label in LABELS} | SHOWN
    for metric, words in wanted.items():
        cells = [summary["metrics"][precision].get(metric, {}) for precision in PRECISIONS]
        if any(cells):
            table.add_row(words, *(shown for cell in cells for shown in _cells(metric, cell)))
    console.print(table)
    for precision, norm in summary["relative_norm"].items():
        console.print(f"relative norm, {precision}: {norm:.3e}", highlight=False)
    for note in summary["notes"]:
        console.print(note, highlight=False)
    if not found.complete:
        console.print(f"left out: {found} (all in summary.json)", highlight=False, markup=False)


def _cells(metric: str, found: Mapping[str, float | None]) -> tuple[str, str, str]:
    """A number and its null, as shares in percent where they are some, and the difference in deviations."""
    observed, null, z = (found.get(key) for key in ("observed", "null", "z"))
    what = quantity(metric)
    digits = ".2%" if what is not None and what.share else ".4g"
    number, beside = ("–" if value is None else f"{value:{digits}}" for value in (observed, null))
    return number, beside, "–" if z is None else f"{z:+.1f}"
