"""The picture of one number of a study: every seed as a dot, the mean and its 95 % interval as a bar, arm below arm."""

from __future__ import annotations

from pathlib import Path

from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from benchmarks.studies.harness import Look, Results
from distill.figures import canvas
from distill.report.spread import spread

FAR = 10
"""How many times the least value the greatest has to be for a logarithmic scale."""


def draw(look: Look, results: Results, path: Path) -> None:
    arms = [arm for arm, values in results.items() if values]
    scale = 100 if look.percent else 1
    figure = canvas.sheet(7.0, 1.0 + 0.28 * len(arms))
    axes = figure.subplots()
    for place, arm in enumerate(reversed(arms)):
        values = [scale * value for value in results[arm].values()]
        found = spread(values)
        assert found is not None
        axes.plot(values, [place] * len(values), "o", color=canvas.OBSERVED, alpha=0.35, markersize=4)
        axes.errorbar(found.mean, place, xerr=found.half or 0, fmt="|", color=canvas.INK, capsize=3, markersize=9)
    everything = [value for values in results.values() for value in values.values()]
    if not look.percent and 0 < FAR * min(everything) < max(everything):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(arms)), list(reversed(arms)))
    axes.set_xlabel(f"{look.what}, %" if look.percent else look.what)
    canvas.dress(axes)
    canvas.plain(axes)
    canvas.save(figure, path)
