"""The pictures of an analysis: each as a PNG file beside the page, and as SVG on the page in its theme's colours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from distill.analysis.naming import GROUPS, place
from distill.figures import canvas
from distill.figures.against_null import Beside, against_null
from distill.figures.heatmap import heat_map
from distill.figures.spectra import Panel, spectra
from distill.report.analysis_folder import Analysis, Cell, cells, finite
from distill.report.analysis_tables import Grid, by_group, grid
from distill.report.charts import inline
from distill.report.vocabulary import Quantity, present, quantity

VARIABLES = {
    canvas.INK: "--ink",
    canvas.MUTED: "--muted",
    canvas.GRID: "--line",
    canvas.OBSERVED: "--c1",
    canvas.NULL: "--c2",
}
SHARES = (
    *("sparsity_0", "sparsity_1e-5", "top_energy_0.001", "top_energy_0.01", "top_energy_0.05"),
    *("coverage_low_0.1_0", "coverage_principal_0.1_0", "rank_1e-6", "spectral_energy_1", "spectral_energy_16"),
    *("projection_joint_0.1", "projection_left_0.1", "projection_right_0.1", "jaccard_1e-5"),
)
MULTIPLES = (
    *("enrichment_low_0.1_0", "enrichment_principal_0.1_0", "stable_rank", "entropy_rank", "rotation_left_0.1"),
    *("rotation_right_0.1", "spectral_drift", "observed_over_expected_1e-5"),
)
"""What the overview shows: shares in percent, and other quantities as multiples of their null."""
CHARTED = ("sparsity_1e-5", "stable_rank", "spectral_energy_16", "projection_joint_0.1")
"""What is drawn by group."""
MAPS = (
    ("Did not move", "sparsity_1e-5", True, False),
    ("Did not move, observed − null", "sparsity_1e-5", True, True),
    ("Share of the update's energy", "energy_share", True, False),
    ("Stable rank", "stable_rank", False, False),
    ("Entropy rank", "entropy_rank", False, False),
)
"""Heat maps: title, metric, whether it is a share, whether its difference from the null is drawn."""
SHARES_TITLE, MULTIPLES_TITLE = "Shares, observed and null", "Other quantities, as multiples of the null"
SPECTRA_TITLE = "Spectra of the update"


@dataclass(frozen=True)
class Map:
    """A heat map of the page: its grid, what is in it, and whether it is of differences."""

    title: str
    grid: Grid
    share: bool
    diverging: bool

    @property
    def limits(self) -> tuple[float, float]:
        """The values of the palest and the darkest cell; of differences, as far below 0 as above."""
        low, high = min(self.grid.known), max(self.grid.known)
        return (-max(abs(low), abs(high)), max(abs(low), abs(high))) if self.diverging else (low, high)

    def depth(self, value: float) -> float:
        """How dark a cell is, in [0, 1]."""
        low, high = self.limits
        if self.diverging:
            return abs(value) / high if high else 0.0
        return (value - low) / (high - low) if high > low else 0.5

    def text(self, value: float) -> str:
        """A cell's number, with as many digits as fit beside thirty others: shares in percent."""
        scale = 100 if self.share else 1
        most = scale * max(abs(limit) for limit in self.limits)
        digits = 0 if most >= 100 and not self.share else 1 if most >= 10 else 2 if most >= 0.1 else 3
        digits = min(digits, 1) if self.diverging and most >= 1 else digits
        return f"{scale * value:{'+' if self.diverging else ''}z.{digits}f}"


@dataclass(frozen=True)
class Chart:
    """``width`` is the one at which its letters are as large as the page's, in pixels."""

    title: str
    svg: str
    width: int


def draw(analysis: Analysis, folder: Path) -> dict[str, list[Chart]]:
    """Writes every picture there is something to draw for; returns those of the page by section."""
    for one in maps(analysis):
        label = "% of weights or energy" if one.share else "median over matrices"
        figure = heat_map(
            one.grid.rows,
            one.grid.columns,
            _scaled(one),
            title=f"{one.title}, by layer",
            label="percentage points" if one.diverging and one.share else label,
            diverging=one.diverging,
        )
        canvas.save(figure, folder / _map_file(one.title))
    sections: dict[str, Callable[[Analysis], Iterator[tuple[str, Figure]]]] = {
        "overview": _overview,
        "groups": _groups,
        "spectra": _spectra,
    }
    return {
        section: [_both(title, figure, folder) for title, figure in figures(analysis)]
        for section, figures in sections.items()
    }


def files() -> list[str]:
    """The names of all pictures that :func:`draw` may write."""
    charted = [_of_groups(what) for key in CHARTED if (what := quantity(key)) is not None]
    return [_map_file(title) for title, *_ in MAPS] + [
        _file(title) for title in (SHARES_TITLE, MULTIPLES_TITLE, SPECTRA_TITLE, *charted)
    ]


def maps(analysis: Analysis) -> list[Map]:
    """Layers × modules: sparsity, what of it exceeds the null, energy, and two ranks."""
    found = ((title, grid(analysis, key, difference=sign), share, sign) for title, key, share, sign in MAPS)
    return [Map(title, table, share, sign) for title, table, share, sign in found if table is not None]


def _scaled(one: Map) -> list[list[float | None]]:
    scale = 100 if one.share else 1
    return [[None if value is None else scale * value for value in row] for row in one.grid.values]


def _overview(analysis: Analysis) -> Iterator[tuple[str, Figure]]:
    measured = cells(analysis.summary.get("metrics", {}).get("bf16", {}))
    shares = _named(measured, SHARES)
    if shares:
        lines = [Beside(name, cell.observed, cell.null, cell.spread) for name, cell in shares]
        yield SHARES_TITLE, against_null(lines, title=f"{SHARES_TITLE}, bf16", label="share", percent=True)
    multiples = [(name, cell) for name, cell in _named(measured, MULTIPLES) if cell.null]
    if multiples:
        lines = [_multiple(name, cell) for name, cell in multiples]
        yield MULTIPLES_TITLE, against_null(lines, title=f"{MULTIPLES_TITLE}, bf16", label="observed / null")


def _multiple(name: str, cell: Cell) -> Beside:
    assert cell.null
    return Beside(name, cell.observed / cell.null, 1.0, None if cell.spread is None else cell.spread / abs(cell.null))


def _named(measured: dict[str, Cell], keys: Sequence[str]) -> list[tuple[str, Cell]]:
    """The metrics that were measured, of matrices their medians, with their names."""
    found = []
    for key in keys:
        name = present(measured, key)
        what = None if name is None else quantity(name)
        if what is not None:
            found.append((what.short, measured[what.key]))
    return found


def _groups(analysis: Analysis) -> Iterator[tuple[str, Figure]]:
    table = by_group(analysis, "bf16")
    if table is None:
        return
    for index, what in enumerate(table.columns):
        if what.key.removesuffix(".median") not in CHARTED:
            continue
        rows = [(row.name, row.cells[index]) for row in table.rows]
        lines = [Beside(name, cell.observed, cell.null, cell.spread) for name, cell in rows if cell is not None]
        title = _of_groups(what)
        yield title, against_null(lines, title=f"{title}, bf16", label=what.short, percent=what.share)


def _spectra(analysis: Analysis) -> Iterator[tuple[str, Figure]]:
    members: dict[str, list[Any]] = {group: [] for group in GROUPS}
    for name, found in analysis.spectra.items():
        observed, null = (_curve(found.get(side)) for side in ("observed", "null"))
        if observed:
            members[place(name).group].append((observed, null))
    panels = [
        Panel(group, [observed for observed, _ in curves], [null for _, null in curves if null])
        for group, curves in members.items()
        if curves
    ]
    if panels:
        yield SPECTRA_TITLE, spectra(panels, title=f"{SPECTRA_TITLE}, bf16")


def _curve(values: Any) -> list[float]:
    numbers = [finite(value) for value in values or ()]
    return [number for number in numbers if number is not None] if None not in numbers else []


def _both(title: str, figure: Figure, folder: Path) -> Chart:
    canvas.save(figure, folder / _file(title))
    figure.set_layout_engine("none")  # everything is in its place already, and finding it takes half of the time
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}
    with mpl.rc_context(style):
        return Chart(title, inline(figure.axes[0], title, VARIABLES), round(110 * figure.get_figwidth()))


def _file(title: str) -> str:
    """A file name from a title: words joined by underscores."""
    words = "".join(char if char.isascii() and char.isalnum() else " " for char in title.lower().replace("−", "minus"))
    return f"{'_'.join(words.split())}.png"


def _map_file(title: str) -> str:
    return f"heatmap_{_file(title)}"


def _of_groups(what: Quantity) -> str:
    return f"By group: {what.short}"
