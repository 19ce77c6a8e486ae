"""How far the embedded student gets in one default run, over seeds: accuracy before and after, gap closed, seconds.

Usage: python benchmarks/embedded_default.py [SEED ...]   (default: 0 1 2)
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distill.report.collect import collect
from distill.report.summary import summarise


def main() -> None:
    seeds = sys.argv[1:] or ["0", "1", "2"]
    print("| seed | student before | after | teacher | gap closed | seconds, start to exit |")
    print("|--:|--:|--:|--:|--:|--:|")
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            run_dir = Path(folder) / "run"
            command = [sys.executable, "-m", "distill", "train", f"seed={seed}", f"hydra.run.dir={run_dir}"]
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds = time.perf_counter() - began
            found = summarise(collect(run_dir))
        shares = (found.before, found.after, found.teacher, found.gap)
        cells = " | ".join("" if share is None else f"{100 * share:.1f} %" for share in shares)
        print(f"| {seed} | {cells} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
