"""Line charts as SVG text whose colours are CSS variables, so that they follow the page's light or dark theme."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from distill.report.collect import Point

COLOURS = 6
MAX_POINTS = 400
"""Longer curves are averaged over equal stretches of steps: a page stays small, a trend stays visible."""

# Stand-ins for CSS variables: matplotlib wants colours, the page wants var(--name).
_INK, _GRID = "#c0de00", "#c0de01"
_SERIES = [f"#c0de{16 + index:02x}" for index in range(COLOURS)]
_VARIABLES = {_INK: "--muted", _GRID: "--line", **{colour: f"--c{i + 1}" for i, colour in enumerate(_SERIES)}}
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-2, 5),
    "axes.formatter.use_mathtext": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Line:
    """One curve; ``reference`` draws its last value as a dashed horizontal instead."""

    label: str
    points: list[Point]
    reference: bool = False


def line_chart(title: str, lines: Sequence[Line], *, percent: bool = False, legend: bool = True) -> str | None:
    """An inline ``<svg>`` of the lines that have points, None when there are none.

    ``title`` must be unique on its page. With ``percent`` the values are shares in [0, 1]. A line's colour and dash
    follow from its place among ``lines``, so that charts of the same runs agree.
    """
    if not any(line.points for line in lines):
        return None
    with mpl.rc_context(_STYLE | {"svg.hashsalt": title}):
        figure = Figure(figsize=(5.6, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for index, line in enumerate(lines):
            if line.points:
                _draw(axes, line, index)
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
            axes.set_ylim(-0.03, 1.03)
        elif all(value >= 0 for line in lines for _, value in line.points):
            axes.set_ylim(bottom=0)
        if legend and len(lines) > 1:
            figure.legend(loc="outside upper left", ncols=3, labelcolor=_INK, handlelength=1.4)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), title)


def _draw(axes: Axes, line: Line, index: int) -> None:
    colour, style = _SERIES[index % COLOURS], ("-", ":", "-.")[index // COLOURS % 3]
    label = f" {line.label}".replace("$", r"\$")  # a leading underscore or a dollar has a meaning in matplotlib
    if line.reference:
        axes.axhline(line.points[-1][1], color=colour, linestyle=(0, (4, 3)), linewidth=1.4, label=label)
        return
    points = thin(line.points)
    marker = "o" if len(points) <= 25 else None
    axes.plot(*zip(*points, strict=True), color=colour, linestyle=style, marker=marker, markersize=3.5, label=label)


def thin(points: list[Point]) -> list[tuple[float, float]]:
    """At most MAX_POINTS means of neighbouring points."""
    size = -(-len(points) // MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(step for step, _ in group) / len(group), sum(value for _, value in group) / len(group)) for group in groups
    ]


def _inline(svg: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    # What belongs to a file of its own: size, fonts, a style for every element, names that repeat in each chart.
    svg = re.sub(r"<(metadata|style)[ >].*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' xmlns:xlink="[^"]*"', "", svg, count=1).replace("xlink:href", "href")
    svg = re.sub(r'<g id="[^"]*"', "<g", re.sub(r" font-family: [^;]*;", "", svg))
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
