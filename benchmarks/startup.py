"""Seconds until the commands that load no model answer, each in a fresh process.

python benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys
import time

COMMANDS = (["--help"], ["train", "--help"], ["train", "--cfg", "job"], ["list"], ["validate"], ["train", "seed=x"])
REPEATS = 3


def main() -> None:
    for arguments in COMMANDS:
        seconds = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "distill", *arguments], capture_output=True, check=False)
            seconds.append(time.perf_counter() - began)
        print(f"{min(seconds):5.2f} s  distill {' '.join(arguments)}")


if __name__ == "__main__":
    main()
