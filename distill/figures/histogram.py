"""Histograms of |Δ| over logarithmic bins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.figures import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (canvas.OBSERVED, canvas.NULL, "#2a8f63", "#a83f8f")


def histogram(
    edges: Sequence[float],
    shares: Mapping[str, Sequence[float]],
    *,
    title: str,
    zero: Mapping[str, float] | None = None,
    tolerance: float | None = None,
) -> Figure:
    """How |Δ| is spread: for each name in ``shares``, the share of all coordinates in each bin.

    ``edges`` are the positive, rising limits of n bins, ``shares`` have n values each. What is exactly 0 has no place
    on a logarithmic axis: ``zero`` gives its share by name, shown in the legend. ``tolerance`` is a vertical line.

    Raises:
        ValueError: the edges do not rise from above 0, or a row has not one value per bin.
    """
    limits = np.array(edges, dtype=float)
    if limits.size < 2 or limits[0] <= 0 or not (np.diff(limits) > 0).all():
        raise ValueError(f"edges must be positive and rising, but is {list(edges)}")
    wrong = {name: len(row) for name, row in shares.items() if len(row) != limits.size - 1}
    if wrong:
        raise ValueError(f"shares must have {limits.size - 1} values each, but is {wrong}")
    figure = canvas.sheet(7, 3.4)
    axes = figure.add_subplot()
    canvas.dress(axes)
    axes.set_xscale("log")
    for index, (name, row) in enumerate(shares.items()):
        colour = COLOURS[index % len(COLOURS)]
        kept = f", exactly 0: {100 * zero[name]:.1f} %" if zero and name in zero else ""
        heights = 100 * np.array(row, dtype=float)
        # A leading underscore would hide a name from the legend.
        axes.stairs(heights, limits, color=colour, linewidth=1.6, label=f" {name}{kept}")
        axes.stairs(heights, limits, color=colour, fill=True, alpha=0.15, linewidth=0)
    if tolerance is not None:
        shown = f"{tolerance:g}".replace("e-0", "e-")
        axes.axvline(tolerance, color=canvas.MUTED, linewidth=1, linestyle=(0, (4, 3)), label=f" tolerance {shown}")
    _frame(axes, limits)
    canvas.write(axes, title)
    return figure


def _frame(axes: Axes, limits: np.ndarray[Any, Any]) -> None:
    axes.set_xlim(limits[0], limits[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("|Δ|")
    axes.set_ylabel("% of all coordinates per bin")
    for text in axes.legend(frameon=False, fontsize=8, labelcolor=canvas.INK).get_texts():
        text.set_parse_math(False)
