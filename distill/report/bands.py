"""Charts of groups of runs: the mean over the seeds as a line, from the lowest to the highest seed as a band."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from distill.report.charts import GRID, INK, TIP, drawing, inline, thin
from distill.report.groups import Group, Member

COLOURS = 8
DASHES = {"solid": "-", "dashed": (0, (4, 2)), "dotted": ":"}
"""The page's name of a line style → matplotlib's; groups beyond COLOURS take the next one."""
MAX_POINTS = 200
LETTERED = 16
"""With more groups than this no letters stand at the ends of the curves."""
_LOG_RATIO = 100
_GAP = 0.06
"""Least distance of two letters, as a share of the height of the axes."""
_COLUMN = 0.04
"""Curves that end within this share of the width of the axes have their letters above each other."""
_SERIES = [f"#c0de{64 + index:02x}" for index in range(COLOURS)]
VARIABLES = {INK: "--muted", GRID: "--line", **{colour: f"--g{index + 1}" for index, colour in enumerate(_SERIES)}}

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Band:
    """One group's curves of one metric. The complete runs have one row each in ``rows`` over their common ``steps``;
    ``singles`` are curves that no mean contains, with the names of their runs. ``stretch`` records make one point."""

    group: Group
    steps: np.ndarray[Any, Any]
    rows: np.ndarray[Any, Any]
    singles: list[tuple[str, Curve]]
    stretch: int

    @property
    def mean(self) -> Curve:
        return list(zip(self.steps.tolist(), self.rows.mean(axis=0).tolist(), strict=True)) if len(self.rows) else []

    @property
    def longest(self) -> Curve:
        """The curve that the group's letter stands at."""
        return self.mean or max((curve for _, curve in self.singles), key=len)

    @property
    def values(self) -> list[float]:
        return [*self.rows.ravel().tolist(), *(value for _, curve in self.singles for _, value in curve)]


def band(group: Group, key: str) -> Band | None:
    """The metric ``key`` of a group, None where no run has it."""
    complete = [run for run in group.complete if run.record.series(key)]
    series = [dict(run.record.series(key)) for run in complete]
    common = sorted(set.intersection(*map(set, series))) if series else []
    alone = [run for run in group.runs if not run.complete or not common]
    singles = [(_tip(group, run), thin(run.record.series(key), MAX_POINTS)) for run in alone if run.record.series(key)]
    if not common and not singles:
        return None
    rows = np.array([[values[step] for step in common] for values in series]) if common else np.empty((0, 0))
    stretch = max(1, -(-len(common) // MAX_POINTS))
    starts = np.arange(0, len(common), stretch)
    counts = np.diff([*starts, len(common)])
    if common:
        # Each run first, then the spread between runs: otherwise a run's own noise would look like that of seeds.
        rows = np.add.reduceat(rows, starts, axis=1) / counts
    steps = np.add.reduceat(np.array(common, dtype=float), starts) / counts if common else np.empty(0)
    return Band(group, steps, rows, singles, stretch)


def band_chart(title: str, bands: Sequence[Band], last_step: int, *, percent: bool = False) -> str:
    """An inline ``<svg>`` of the steps 0 to ``last_step``; where positive values differ more than a hundredfold, with a
    logarithmic axis."""
    values = [value for band in bands for value in band.values]
    least, most = min(values), max(values)
    with drawing(title) as axes:
        if not percent and least > 0 and most / least > _LOG_RATIO:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        for each in bands:
            _draw(axes, each)
        axes.set_xlim(-0.02 * last_step, 1.02 * last_step)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
            axes.set_ylim(*_shares(least, most))
        elif least >= 0 and axes.get_yscale() == "linear":
            axes.set_ylim(0, 1.08 * most or 1)
        if len(bands) <= LETTERED:
            _letters(axes, bands)
        return _rounded(inline(axes, title, VARIABLES))


def style(index: int) -> tuple[int, str]:
    """The colour's number, from 1, and the name of the dash of the group at ``index``."""
    return index % COLOURS + 1, list(DASHES)[index // COLOURS % len(DASHES)]


def _shares(least: float, most: float) -> tuple[float, float]:
    """Limits of an axis for shares: close around them, not far beyond 0 and 1."""
    margin = max(0.01, 0.06 * (most - least))
    low, high = max(least - margin, 0.0), min(most + margin, 1.0)
    return low - 0.03 * (high - low), high + 0.03 * (high - low)


def _draw(axes: Axes, band: Band) -> None:
    colour, dash = style(band.group.index)
    look: dict[str, Any] = {"color": _SERIES[colour - 1], "linestyle": DASHES[dash]}
    if len(band.rows) > 1:
        low, high = band.rows.min(axis=0), band.rows.max(axis=0)
        axes.fill_between(band.steps, low, high, color=look["color"], alpha=0.18, linewidth=0)
    if band.mean:
        marker = "o" if len(band.steps) <= 25 else None
        of = f"mean of {len(band.rows)} runs" if len(band.rows) > 1 else "one run"
        tip = f"{TIP}{band.group.letter}: {band.group.name}, {of}"
        axes.plot(*zip(*band.mean, strict=True), **look, marker=marker, markersize=3.5, gid=tip)
    for tip, curve in band.singles:
        axes.plot(
            *zip(*curve, strict=True), **look, linewidth=1.2, alpha=0.85, marker="x", markevery=[-1], gid=TIP + tip
        )


def _letters(axes: Axes, bands: Sequence[Band]) -> None:
    """Each group's letter at the end of its curve, those that end together pushed apart."""
    ends = [(band, band.longest[-1]) for band in bands]
    to_axes = axes.transScale + axes.transLimits
    placed = [(band, *to_axes.transform(end)) for band, end in ends]
    while placed:
        last = max(x for _, x, _ in placed)
        column = sorted((item for item in placed if item[1] > last - _COLUMN), key=lambda item: item[2])
        placed = [item for item in placed if item[1] <= last - _COLUMN]
        for (band, _, _), y in zip(column, _apart([y for _, _, y in column]), strict=True):
            look: dict[str, Any] = {"color": _SERIES[style(band.group.index)[0] - 1], "weight": "bold", "va": "center"}
            axes.text(last + 0.02, y, band.group.letter, transform=axes.transAxes, **look)


def _apart(heights: Sequence[float]) -> list[float]:
    """Rising ``heights`` moved as little as pushing up and then down needs for a distance of _GAP inside [0, 1]."""
    found = list(heights)
    for index in range(1, len(found)):
        found[index] = max(found[index], found[index - 1] + _GAP)
    limit = 1.0
    for index in reversed(range(len(found))):
        found[index] = min(found[index], limit)
        limit = found[index] - _GAP
    return found


def _tip(group: Group, run: Member) -> str:
    return f"{group.letter}: {group.name}, seed {run.seed}, {run.state}"


def _rounded(svg: str) -> str:
    """Paths in tenths of a point: a third of the bytes, and no eye sees it."""
    return re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\d\.\d)\d+", r"\1", path[0]), svg)
