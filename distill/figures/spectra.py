"""Singular values of updates, observed against null, one panel per group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.figures import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 64
"""Places along the spectrum at which matrices of different size are compared."""
FLOOR = 1e-6
"""Below this share of σ₁ a singular value is drawn at the floor: in bf16 nothing there is told apart from zero."""

Curve = Sequence[float]


@dataclass(frozen=True)
class Panel:
    """The spectra of one group: σ/σ₁ of each matrix from the largest to the smallest, any number of values each."""

    name: str
    observed: Sequence[Curve]
    null: Sequence[Curve] = ()


def spectra(panels: Sequence[Panel], *, title: str) -> Figure:
    """Medians over the matrices of each group as lines, from the lowest to the highest matrix as bands.

    The horizontal axis is the place in the spectrum: 0 for σ₁, 1 for the smallest. The title is the figure's.

    Raises:
        ValueError: there is no panel, or one without a spectrum.
    """
    empty = [panel.name for panel in panels if not panel.observed]
    if not panels or empty:
        raise ValueError(f"panels must have an observed spectrum each, but is {empty}")
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = canvas.sheet(1 + 3.0 * columns, 0.9 + 2.3 * rows)
    every = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for axes, panel in zip(every, panels, strict=False):
        _draw(axes, panel)
    for axes in every[len(panels) :]:
        axes.remove()
    for axes in every[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel("place in the spectrum")
        axes.tick_params(labelbottom=True)
    figure.supylabel("σ / σ₁", fontsize=9, color=canvas.MUTED)
    found = [axes.get_legend_handles_labels() for axes in every[: len(panels)]]
    shown = {label: handle for handles, labels in found for handle, label in zip(handles, labels, strict=True)}
    figure.legend(
        list(shown.values()),
        list(shown),
        loc="outside upper right",
        ncols=2,
        frameon=False,
        fontsize=8,
        labelcolor=canvas.INK,
    )
    figure.suptitle(title, fontsize=10, color=canvas.INK, x=0.01, ha="left", parse_math=False)
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    canvas.dress(axes)
    axes.set_yscale("log")
    axes.minorticks_off()
    place = np.linspace(0, 1, POINTS)
    for curves, name, colour, dash in (
        (panel.null, "null", canvas.NULL, (0, (4, 2))),
        (panel.observed, "observed", canvas.OBSERVED, "-"),
    ):
        if not curves:
            continue
        values = np.maximum([_at(place, curve) for curve in curves], FLOOR)
        axes.fill_between(place, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18, linewidth=0)
        axes.plot(place, np.median(values, axis=0), color=colour, linestyle=dash, linewidth=1.8, label=name)
    axes.set_xlim(0, 1)
    axes.set_ylim(top=1.15)
    count = len(panel.observed)
    canvas.write(axes, f"{canvas.shorten(panel.name)}, {count} {'matrix' if count == 1 else 'matrices'}")


def _at(place: np.ndarray[Any, Any], curve: Curve) -> np.ndarray[Any, Any]:
    own = np.linspace(0, 1, len(curve)) if len(curve) > 1 else np.zeros(1)
    return np.asarray(np.interp(place, own, np.array(curve, dtype=float)))
