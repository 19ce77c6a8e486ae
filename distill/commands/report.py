"""``distill report runs=[DIR,…] out=FILE``: one HTML page about one run, or about several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.report.collect import collect
from distill.report.render import render


def run(config: dict[str, Any], run_dir: Path) -> int:
    """Keys: ``runs`` (run directories), ``out`` (default: ``report.html`` in the first of them).

    Raises:
        UserError: a folder does not exist or is not a run directory.
    """
    folders = [Path(folder) for folder in config["runs"]]
    for folder in folders:
        if not folder.is_dir():
            raise UserError("runs", str(folder), "existing run directories")
    out = Path(config["out"] or folders[0] / "report.html")
    render([collect(folder) for folder in folders], out)
    print(f"written to {out}")
    return 0
