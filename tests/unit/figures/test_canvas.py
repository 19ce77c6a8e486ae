"""Drawing leaves no trace: no pyplot, no changed defaults, and the same bytes each time."""

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl

from distill.figures import canvas
from distill.figures.heatmap import heat_map


def test_the_same_figure_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        canvas.save(heat_map(["0"], ["x", "y"], [[0.2, 0.4]], title="t", label="l"), tmp_path / name)
    first = (tmp_path / "a.png").read_bytes()
    assert first == (tmp_path / "b.png").read_bytes()
    assert first.startswith(b"\x89PNG")


def test_drawing_changes_no_default() -> None:
    before = dict(mpl.rcParams)
    canvas.pixels(heat_map(["0"], ["x"], [[0.2]], title="t", label="l"))
    assert dict(mpl.rcParams) == before


def test_importing_draws_nothing_in_and_pyplot_is_never_needed() -> None:
    code = (
        "import sys; import distill.figures.heatmap as h, distill.figures.histogram, distill.figures.canvas as c;"
        "assert 'matplotlib' not in sys.modules;"
        "c.pixels(h.heat_map(['0'], ['x'], [[1.0]], title='t', label='l'));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_short_names_stay() -> None:
    assert canvas.shorten("q_proj") == "q_proj"
    assert canvas.shorten("x" * 32) == "x" * 32
    assert len(canvas.shorten("x" * 33)) == 32
