"""Plays runs of two ranks, and leaves no process behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.distributed import watched
from tests.processes import Process


def play(folder: Path, runs: list[dict[str, Any]], at_once: int) -> dict[str, Any]:
    """The outcome of each run by name; ``at_once`` of them run beside each other."""
    process = Process(folder, watched.play, runs, folder / "results.json", at_once)
    try:
        assert process.wait(1200) == 0, process.said()
    finally:
        process.kill()
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def lines(folder: Path) -> list[str]:
    """All that the two ranks wrote to their standard errors."""
    said = [line for rank in range(2) for line in (folder / f"stderr{rank}").read_text().splitlines()]
    # deepspeed, where it is imported, tells which device it has found.
    return [line for line in said if line and "get_accelerator" not in line]
