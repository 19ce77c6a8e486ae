"""Reports of tests' runs without their pictures, which cost as much as a small run; their own tests draw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from distill.report import charts

_inline, _line_chart = charts.inline, charts.line_chart
drawn = False
"""What a test sets that looks at pictures: the fixture ``pictures`` does."""
EMPTY = "<svg></svg>"


def _maybe(axes: Axes, title: str, variables: Mapping[str, str]) -> str:
    return _inline(axes, title, variables) if drawn else EMPTY


def _maybe_lines(title: str, lines: Sequence[charts.Line], *, percent: bool = False) -> str | None:
    if drawn:
        return _line_chart(title, lines, percent=percent)
    return EMPTY if any(line.points for line in lines) else None


def leave_out() -> None:
    """From now on in this process, before anything else has imported what draws."""
    charts.inline, charts.line_chart = _maybe, _maybe_lines
