"""``distill report runs=[PATH,…] out=FILE``: one HTML page about one run, or a comparison of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.report.collect import collect, read
from distill.report.gather import holder, run_dirs
from distill.report.render import render


def run(config: dict[str, Any], run_dir: Path) -> int:
    """Keys: ``runs`` (runs, sweeps, folders of runs, patterns) and ``out``, by default ``report.html`` of the only run,
    or ``compare.html`` in the deepest folder that holds all of several.

    Raises:
        UserError: an element is or holds no run, a run is named twice, or a file of it may not be read.
    """
    folders = run_dirs(config["runs"])
    one = len(folders) == 1
    out = Path(config["out"] or holder(folders) / ("report.html" if one else "compare.html"))
    render([collect(folders[0])] if one else [read(folder, with_samples=False) for folder in folders], out)
    print(f"written to {out}")
    return 0
