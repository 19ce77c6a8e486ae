"""What an analysis found, in sentences: which numbers differ from the rounding null, which do not, and by how much.

Two things make a finding. The difference must be *clear*: outside the 95 % prediction interval of one more draw of the
null (Student's t; few draws of small spread make any z large, so z alone decides nothing). And it must be *large
enough to matter*: a point of a share (less near 0 and 100 %, where a point is much), a twentieth of anything else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from distill.report import wording
from distill.report.analysis_folder import PRECISIONS, Cell, cells
from distill.report.spread import t_quantile
from distill.report.vocabulary import present, quantity

ABOVE, BELOW, SAME, NEGLIGIBLE, UNDECIDED, ALONE = "above", "below", "same", "negligible", "undecided", "alone"
"""Verdicts: beyond the null; within its spread or negligibly beside it; clear but negligible; large but not clear (a
single draw, or within the spread of few); without a null."""

POINT, LEAST_POINT, PART_OF_SHARE, PART = 0.01, 0.001, 0.2, 0.05
"""Negligible are differences below POINT of a share, or PART_OF_SHARE of its distance to 0 or 1 where that is less but
not below LEAST_POINT; and below PART of the null of anything else."""

SUBJECTS: Mapping[str, tuple[str, str, str]] = {
    "sparsity_1e-5": (
        "More weights stayed where they were than rounding explains",
        "Fewer weights stayed where they were than rounding alone would leave",
        "As many weights stayed where they were as rounding alone would leave",
    ),
    "top_energy_0.01": (
        "The movement is concentrated in fewer weights than in a random update",
        "The movement is spread over more weights than in a random update",
        "The movement is as spread over the weights as in a random update",
    ),
    "enrichment_principal_0.1_0": (
        "Weights that matter most to the source's main directions moved more often than rounding makes them",
        "Weights that matter most to the source's main directions moved less often than rounding makes them",
        "Weights that matter most to the source's main directions moved as often as rounding makes them",
    ),
    "enrichment_low_0.1_0": (
        "Small weights moved even more often than rounding makes them",
        "Small weights moved less often than rounding makes them",
        "Small weights moved as often as rounding makes them",
    ),
    "stable_rank": (
        "The update spreads over more directions than a random one",
        "The update is concentrated in fewer directions than a random one",
        "The update has as many effective directions as a random one",
    ),
    "spectral_energy_16": (
        "The 16 strongest directions hold more of the update than of a random one",
        "The 16 strongest directions hold less of the update than of a random one",
        "The 16 strongest directions hold as much of the update as of a random one",
    ),
    "rank_1e-6": (
        "The update's matrices have a higher rank than random ones",
        "The update's matrices have a lower rank than random ones",
        "The update's matrices have the rank of random ones",
    ),
    "projection_joint_0.1": (
        "The update lies more within the source's main directions than a random one",
        "The update lies less within the source's main directions than a random one",
        "The update lies as much within the source's main directions as a random one",
    ),
    "rotation_left_0.1": (
        "The source's main output directions turned more than by a random update",
        "The source's main output directions turned less than by a random update",
        "The source's main output directions turned as much as by a random update",
    ),
    "rotation_right_0.1": (
        "The source's main input directions turned more than by a random update",
        "The source's main input directions turned less than by a random update",
        "The source's main input directions turned as much as by a random update",
    ),
    "spectral_drift": (
        "The source's singular values changed more than by a random update",
        "The source's singular values changed less than by a random update",
        "The source's singular values changed as much as by a random update",
    ),
    "observed_over_expected_1e-5": (
        "Two runs move the same weights more often than rounding makes them",
        "Two runs move the same weights less often than rounding makes them",
        "Two runs move the same weights as often as rounding makes them",
    ),
}
"""Metrics worth a sentence, with what to say when the observed number is above its null, below, or beside it."""


@dataclass(frozen=True)
class Finding:
    """One sentence (``claim``), the numbers it stands on, and the verdict that chose it."""

    key: str
    precision: str
    verdict: str
    claim: str
    numbers: str


def findings(summary: Mapping[str, Any]) -> list[Finding]:
    """The sentences about both precisions of one ``summary.json``, bf16 first, in the order of SUBJECTS.

    There is nothing to find in an update that is zero.
    """
    found = list[Finding]()
    if still(summary):
        return found
    for precision in PRECISIONS:
        measured = cells(summary.get("metrics", {}).get(precision, {}))
        for key, claims in SUBJECTS.items():
            # What is measured per matrix stands for the model by its median.
            name = present(measured, key)
            if name is not None:
                found.append(_finding(name, claims, precision, measured[name], int(summary.get("null_draws") or 0)))
    return found


def still(summary: Mapping[str, Any]) -> bool:
    """Whether no weight moved at all, in any precision."""
    norms = [cells(metrics).get("relative_norm") for metrics in summary.get("metrics", {}).values()]
    return bool(norms) and all(norm is not None and norm.observed == 0 for norm in norms)


def _finding(key: str, claims: tuple[str, str, str], precision: str, cell: Cell, draws: int) -> Finding:
    what = quantity(key)
    assert what is not None, f"{key} has no name"
    found = verdict(cell, draws, share=what.share)
    shown = numbers(what.name, cell, share=what.share)
    if found == ALONE:
        return Finding(key, precision, found, f"{_upper(shown)}.", "no null to set it beside")
    above, below, same = claims
    up = (cell.difference or 0) > 0
    claim = {
        ABOVE: above,
        BELOW: below,
        SAME: same,
        NEGLIGIBLE: f"{same}: the difference is clear, but too small to matter",
        UNDECIDED: f"Perhaps {_lower(above if up else below)}: {_doubt(cell, draws)}",
    }[found]
    return Finding(key, precision, found, f"{claim}.", shown)


def verdict(cell: Cell, draws: int, *, share: bool) -> str:
    """What may be said of one number beside the null of so many draws."""
    if cell.null is None or cell.difference is None:
        return ALONE
    small, clear = negligible(cell.null, cell.difference, share=share), distinct(cell, draws)
    if small:
        return NEGLIGIBLE if clear else SAME
    if not clear:
        return UNDECIDED
    return ABOVE if cell.difference > 0 else BELOW


def negligible(null: float, difference: float, *, share: bool) -> bool:
    """Whether a difference is too small to matter, however clear it is."""
    if not share:
        return abs(difference) < PART * abs(null) or difference == 0
    room = min(abs(null), abs(1 - null))
    return abs(difference) < max(LEAST_POINT, min(POINT, PART_OF_SHARE * room))


def distinct(cell: Cell, draws: int) -> bool:
    """Whether the observed number lies outside the 95 % prediction interval of one more draw of the null."""
    if draws < 2 or cell.difference is None or cell.spread is None:
        return False
    return abs(cell.difference) > _quantile(draws - 1) * math.sqrt(1 + 1 / draws) * cell.spread


@cache
def _quantile(freedom: int) -> float:
    return t_quantile(freedom)


def numbers(name: str, cell: Cell, *, share: bool) -> str:
    """``did not move: |Δ| ≤ 1e-5: 78.1 %, null 79.0 ± 0.02 % (difference −0.9 points, z −45.0)``."""
    observed = f"{name}: {wording.value(cell.observed, share=share)}"
    if cell.null is None:
        return observed
    null = f"null {wording.value(cell.null, share=share)} ± {wording.spread(cell.spread, share=share)}"
    z = f", z {wording.deviations(cell.z)}" if cell.z is not None else ""
    return f"{observed}, {null} (difference {wording.gap(cell.difference, share=share)}{z})"


def _doubt(cell: Cell, draws: int) -> str:
    if draws < 2 or cell.spread is None:
        return "a single draw of the null does not tell its spread"
    return f"the difference is within what {draws} draws of the null may differ by"


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]
