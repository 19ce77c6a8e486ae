"""The pictures of the sparsity study: learning curves, sparsity beside its null, and learning rates of SGD."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distill.figures import canvas
from distill.report.collect import RunRecord

ACCURACY, NORM = "eval/accuracy", "update/relative_norm_fp32"
SPARSITY, NULL = "sparsity/bf16/1e-5", "sparsity_null/bf16/1e-5"
COLOURS = ("#2f66c0", "#d06a1e", "#3a8f5c", "#8a5fb0", "#5c646e")
RECIPES = ("sft", "offline_kd", "opd")
MASKS = ("opd", "mask updated", "mask rounding_null", "mask random", "mask low")
NAMES = {"opd": "all weights", "mask updated": "what OPD moved", "mask rounding_null": "what rounding moves"} | {
    "mask random": "random",
    "mask low": "smallest |θ₀|",
}

Groups = Mapping[str, Sequence[RunRecord]]


def draw(groups: Groups, folder: Path) -> None:
    """Every picture whose runs are there."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[Groups], Figure]] = {}
    if any(name in groups for name in (*RECIPES, *MASKS)):
        pictures |= {"accuracy": accuracy, "sparsity": sparsity}
    if any(name.startswith("sgd") for name in groups):
        pictures["sgd"] = sgd
    for name, picture in pictures.items():
        canvas.save(picture(groups), folder / f"{name}.png")


def accuracy(groups: Groups) -> Figure:
    """Accuracy over steps, by recipe and by mask: the mean over seeds, and a band from the worst to the best."""
    figure = canvas.sheet(9.2, 3.4)
    axes = figure.subplots(1, 2, sharey=True)
    for place, names, title in ((axes[0], RECIPES, "recipes"), (axes[1], MASKS, "OPD of a subnetwork alone")):
        for colour, name in zip(COLOURS, names, strict=False):
            if name in groups:
                _curve(place, groups[name], colour, NAMES.get(name, name) if place is axes[1] else name)
        place.set_xlabel("step")
        place.legend(fontsize=8, frameon=False)
        canvas.dress(place)
        canvas.write(place, title)
    axes[0].set_ylabel("accuracy, %")
    return figure


def _curve(axes: Axes, runs: Sequence[RunRecord], colour: str, label: str) -> None:
    curves = [dict(run.series(ACCURACY)) for run in runs]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    at = [[100 * curve[step] for curve in curves] for step in steps]
    axes.plot(steps, [statistics.fmean(values) for values in at], "o-", color=colour, markersize=3, label=label)
    axes.fill_between(steps, [*map(min, at)], [*map(max, at)], color=colour, alpha=0.15, linewidth=0)


def sparsity(groups: Groups) -> Figure:
    """Sparsity against the size of the update while it grows, of each run and of its null."""
    figure = canvas.sheet(5.6, 3.6)
    axes = figure.add_subplot()
    for colour, name in zip(COLOURS, RECIPES, strict=False):
        for index, run in enumerate(groups.get(name, ())):
            norms = dict(run.series(NORM))
            for key, look in ((SPARSITY, "o-"), (NULL, "x--")):
                points = sorted((norms[step], 100 * value) for step, value in run.series(key) if step in norms)
                if not points:
                    continue
                label = (name if key == SPARSITY else f"null of {name}") if not index else None
                axes.plot(*zip(*points, strict=True), look, color=colour, markersize=4, linewidth=1, label=label)
    axes.set_xlabel("relative norm of the update, fp32")
    axes.set_ylabel("share with |Δ| ≤ 1e-5 in bf16, %")
    axes.legend(fontsize=8, frameon=False)
    canvas.dress(axes)
    canvas.write(axes, "sparsity is what rounding leaves of an update of that size")
    return figure


def sgd(groups: Groups) -> Figure:
    """Accuracy at the end against SGD's learning rate, beside AdamW's."""
    figure = canvas.sheet(5.6, 3.2)
    axes = figure.add_subplot()
    runs = sorted(
        (float(run.setting("optimizer", "lr")), 100 * (run.last(ACCURACY) or 0.0))
        for name, found in groups.items()
        if name.startswith("sgd")
        for run in found
    )
    axes.plot(*zip(*runs, strict=True), "o-", color=canvas.OBSERVED, label="SGD, momentum 0.9")
    for index, run in enumerate(groups.get("opd", ())):
        label = None if index else "AdamW, each seed"
        axes.axhline(100 * (run.last(ACCURACY) or 0.0), color=canvas.NULL, linewidth=1, label=label)
    start = next(run.first(ACCURACY) for found in groups.values() for run in found)
    axes.axhline(100 * (start or 0.0), color=canvas.MUTED, linestyle=":", linewidth=1, label="before training")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate of SGD")
    axes.set_ylabel("accuracy, %")
    axes.legend(fontsize=8, frameon=False)
    canvas.dress(axes)
    canvas.write(axes, "OPD by SGD")
    return figure
