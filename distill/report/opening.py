"""The top of an analysis page: what was compared and what came out, for somebody who has not read the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill.analysis.comparable import caveat
from distill.report import wording
from distill.report.analysis_folder import PRECISIONS, Cell, cells
from distill.report.findings import ABOVE, ALONE, BELOW, NEGLIGIBLE, SAME, UNDECIDED, Finding, still, verdict

HEADLINE = "sparsity_1e-5"


def headline(summary: Mapping[str, Any]) -> str:
    """``82.0 % of the weights did not move; rounding alone would leave 79.0 %``."""
    found = _measured(summary, "bf16").get(HEADLINE)
    if found is None:
        return f"{_tensors(summary)} compared"
    if still(summary):
        return "No weight moved"
    start = f"{_percent(found.observed)} of the weights did not move"
    return start if found.null is None else f"{start}; rounding alone would leave {_percent(found.null)}"


def paragraphs(summary: Mapping[str, Any], found: Sequence[Finding]) -> list[str]:
    """The summary in plain words: compared, how far, how many, and whether rounding explains it."""
    if still(summary):
        return [_compared(summary), "No weight moved at all: the weights compared are the same, bit by bit."]
    told = [_compared(summary), _moved(summary), _unmoved(summary), _explained(summary, found), _parts(summary)]
    told.append(_counted(found))
    return [sentence for sentence in told if sentence]


def notes(summary: Mapping[str, Any]) -> list[str]:
    """What the analysis warns of, and why its sparsity is not comparable, if it is not."""
    warned = [str(note) for note in summary.get("notes") or ()]
    norm = _measured(summary, "fp32").get("relative_norm")
    own = None if norm is None else caveat(norm.observed)
    if still(summary):
        return [note for note in warned if note != own]
    return warned if own is None or own in warned else [own, *warned]


def _compared(summary: Mapping[str, Any]) -> str:
    parts = f"{int(summary.get('parameters', 0)):,} weights in {_tensors(summary)}"
    return (
        f"Compared: the trained model with the weights it started from, {parts}. θ₀ are those weights, Δ is what "
        "training added to them."
    )


def _moved(summary: Mapping[str, Any]) -> str:
    norms = {name: cell for name in PRECISIONS if (cell := _measured(summary, name).get("relative_norm"))}
    if not norms:
        return ""
    shown = ", ".join(f"{wording.value(cell.observed, share=False)} in {name}" for name, cell in norms.items())
    last = list(norms.values())[-1].observed
    return f"Taken together, the weights moved by {_percent(last)} of their own length (‖Δ‖/‖θ₀‖: {shown})."


def _unmoved(summary: Mapping[str, Any]) -> str:
    shares = {name: cell for name in PRECISIONS if (cell := _measured(summary, name).get(HEADLINE))}
    shown = " and ".join(f"{_percent(cell.observed)} in {name}" for name, cell in shares.items())
    exactly = _measured(summary, "bf16").get("sparsity_0")
    equal = f" ({_percent(exactly.observed)} are bit-identical in bf16)" if exactly else ""
    return f"Weights that did not move, |Δ| ≤ 1e-5: {shown}{equal}." if shown else ""


def _explained(summary: Mapping[str, Any], found: Sequence[Finding]) -> str:
    measured = _measured(summary, "bf16").get(HEADLINE)
    first = next((one for one in found if one.key == HEADLINE and one.precision == "bf16"), None)
    if measured is None or measured.null is None or first is None:
        return "No null was drawn, so nothing here tells how much of this rounding explains."
    rounding = (
        "Is that more than rounding explains? bf16 keeps about three digits, so small changes vanish whatever made "
        f"them: random changes of the same size, rounded the same way, leave {_percent(measured.null)} unmoved too. "
    )
    answer = {
        ABOVE: f"Yes: {wording.gap(measured.difference, share=True)}.",
        BELOW: f"No, it is less: {wording.gap(measured.difference, share=True)}.",
        SAME: "No: there is no difference to speak of.",
        NEGLIGIBLE: f"Hardly: {wording.gap(measured.difference, share=True)} are clear, but too little to matter.",
        UNDECIDED: f"Perhaps: {wording.gap(measured.difference, share=True)}, but the draws of the null cannot tell.",
    }
    return rounding + answer[first.verdict]


def _parts(summary: Mapping[str, Any]) -> str:
    """Which groups the difference comes from: a whole may exceed its null because of one part alone."""
    found = {
        name: cell
        for name, metrics in (summary.get("groups") or {}).items()
        if (cell := cells(metrics.get("bf16", {})).get(HEADLINE)) and cell.difference is not None
    }
    if len(found) < 2:
        return ""
    draws = int(summary.get("null_draws") or 0)
    alike = len({verdict(cell, draws, share=True) for cell in found.values()}) == 1
    largest = sorted(found.items(), key=lambda item: -abs(item[1].difference or 0))
    shown = ", ".join(f"{wording.gap(cell.difference, share=True)} in {name}" for name, cell in largest)
    return f"By group, observed − null is {shown}{'' if alike else ': not the same everywhere'}."


def _counted(found: Sequence[Finding]) -> str:
    bf16 = [one.verdict for one in found if one.precision == "bf16" and one.verdict != ALONE]
    if not bf16:
        return ""
    differ = sum(one in {ABOVE, BELOW} for one in bf16)
    open_ = bf16.count(UNDECIDED)
    undecided = f", {open_} cannot be decided" if open_ else ""
    return (
        f"Of {len(bf16)} quantities looked at in bf16, {differ} differ from the null clearly and by enough to "
        f"matter, {len(bf16) - differ - open_} do not{undecided}."
    )


def _measured(summary: Mapping[str, Any], precision: str) -> dict[str, Cell]:
    return cells(summary.get("metrics", {}).get(precision, {}))


def _percent(share: float) -> str:
    return wording.value(share, share=True)


def _tensors(summary: Mapping[str, Any]) -> str:
    count = int(summary.get("tensors", 0))
    return f"{count} tensor{'s' if count != 1 else ''}"
