"""Observed values beside what rounding alone gives, one line per quantity or part of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill.figures import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Beside:
    """One line: ``null`` is the mean over the draws and ``spread`` their standard deviation; None is not measured."""

    name: str
    observed: float
    null: float | None = None
    spread: float | None = None


def against_null(lines: Sequence[Beside], *, title: str, label: str, percent: bool = False) -> Figure:
    """A point for what was observed, a bar through the null's mean for its spread, and a line between the two.

    With ``percent`` the values are shares in [0, 1].

    Raises:
        ValueError: there is no line.
    """
    if not lines:
        raise ValueError("lines must not be empty, but is []")
    names = max(len(canvas.shorten(line.name)) for line in lines)
    figure = canvas.sheet(4.4 + 0.075 * names, 1.25 + 0.27 * len(lines))
    axes = figure.add_subplot()
    canvas.dress(axes)
    scale = 100.0 if percent else 1.0
    for place, line in enumerate(lines):
        _draw(axes, line, place, scale)
    _frame(axes, lines, f"{label}, %" if percent else label)
    canvas.write(axes, title)
    return figure


def _draw(axes: Axes, line: Beside, place: int, scale: float) -> None:
    if line.null is not None:
        axes.plot(
            [scale * line.null, scale * line.observed], [place, place], color=canvas.GRID, linewidth=2.4, zorder=1
        )
        spread = scale * (line.spread or 0)
        look: dict[str, Any] = {"color": canvas.NULL, "markersize": 11, "markeredgewidth": 2, "elinewidth": 2}
        axes.errorbar([scale * line.null], [place], xerr=spread, fmt="|", label="null: mean ± spread", zorder=2, **look)
    axes.plot([scale * line.observed], [place], "o", color=canvas.OBSERVED, markersize=5.5, label="observed", zorder=3)


def _frame(axes: Axes, lines: Sequence[Beside], label: str) -> None:
    axes.set_yticks(range(len(lines)), [canvas.shorten(line.name) for line in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.set_xlabel(label)
    axes.margins(x=0.06)
    canvas.plain(axes)
    handles, names = axes.get_legend_handles_labels()
    shown = dict(zip(names, handles, strict=True))
    look: dict[str, Any] = {"frameon": False, "fontsize": 8, "labelcolor": canvas.INK}
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=2, **look)
