"""Line charts as SVG text whose colours are CSS variables, so that they follow the page's light or dark theme."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
INK, GRID = "#c0de00", "#c0de01"
SERIES = [f"#c0de{16 + index:02x}" for index in range(COLOURS)]
VARIABLES = {INK: "--muted", GRID: "--line", **{colour: f"--c{i + 1}" for i, colour in enumerate(SERIES)}}
TIP = "tip:"
"""Starts the id of a curve whose name a browser shows under the pointer."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-2, 5),
    "axes.formatter.use_mathtext": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Line:
    """One curve; ``reference`` draws its last value as a dashed horizontal instead."""

    label: str
    points: list[Point]
    reference: bool = False


def line_chart(title: str, lines: Sequence[Line], *, percent: bool = False) -> str | None:
    """An inline ``<svg>`` of the lines that have points, None when there are none.

    ``title`` must be unique on its page. With ``percent`` the values are shares in [0, 1]. A line's colour and dash
    follow from its place among ``lines``.
    """
    if not any(line.points for line in lines):
        return None
    with drawing(title) as axes:
        for index, line in enumerate(lines):
            if line.points:
                _draw(axes, line, index)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
            axes.set_ylim(-0.03, 1.03)
        elif all(value >= 0 for line in lines for _, value in line.points):
            axes.set_ylim(bottom=0)
        if len(lines) > 1:
            axes.figure.legend(loc="outside upper left", ncols=3, labelcolor=INK, handlelength=1.4)
        return inline(axes, title, VARIABLES)


@contextmanager
def drawing(title: str) -> Iterator[Axes]:
    """Axes over optimizer steps in the page's style; what is drawn and saved within it has ids of its own."""
    with mpl.rc_context(_STYLE | {"svg.hashsalt": title}):
        axes = Figure(figsize=(5.6, 2.9), layout="constrained").add_subplot()
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        yield axes


def _draw(axes: Axes, line: Line, index: int) -> None:
    colour, style = SERIES[index % COLOURS], ("-", ":", "-.")[index // COLOURS % 3]
    label = f" {line.label}".replace("$", r"\$")  # a leading underscore or a dollar has a meaning in matplotlib
    if line.reference:
        axes.axhline(line.points[-1][1], color=colour, linestyle=(0, (4, 3)), linewidth=1.4, label=label)
        return
    points = thin(line.points)
    marker = "o" if len(points) <= 25 else None
    axes.plot(*zip(*points, strict=True), color=colour, linestyle=style, marker=marker, markersize=3.5, label=label)


def thin(points: list[Point], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most ``most`` means of neighbouring points."""
    size = -(-len(points) // most)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(step for step, _ in group) / len(group), sum(value for _, value in group) / len(group)) for group in groups
    ]


def inline(axes: Axes, title: str, variables: Mapping[str, str]) -> str:
    """The figure as an ``<svg>`` element; ``variables`` maps colours drawn with to the page's variables."""
    buffer = io.StringIO()
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # What belongs to a file of its own: size, fonts, a style for every element, names that repeat in each chart.
    svg = re.sub(r"<(metadata|style)[ >].*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' xmlns:xlink="[^"]*"', "", svg, count=1).replace("xlink:href", "href")
    svg = re.sub(rf'<g id="{TIP}([^"]*)"([^>]*)>', r"<g\2><title>\1</title>", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", re.sub(r" font-family: [^;]*;", "", svg))
    for colour, variable in variables.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
