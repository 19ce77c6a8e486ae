"""Plays runs of two ranks, forks of one process that ``watched.py`` is, and leaves no process behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def play(folder: Path, runs: list[dict[str, Any]], at_once: int) -> dict[str, Any]:
    """The outcome of each run by name; ``at_once`` of them run beside each other."""
    (folder / "runs.json").write_text(json.dumps(runs))
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("watched.py")), "runs.json", "results.json"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "AT_ONCE": str(at_once)},
        start_new_session=True,
    )
    try:
        assert process.wait() == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def lines(folder: Path) -> list[str]:
    """All that the two ranks wrote to their standard errors."""
    said = [line for rank in range(2) for line in (folder / f"stderr{rank}").read_text().splitlines()]
    # deepspeed, where it is imported, tells which device it has found.
    return [line for line in said if line and "get_accelerator" not in line]
