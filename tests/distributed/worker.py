"""One rank: trains every run of a JSON list ``[[config, run_dir], …]`` in turn. Started by torchrun."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from distill.commands.train import run
from tests import pictures


def main() -> None:
    torch.set_num_threads(1)
    pictures.leave_out()
    for config, run_dir in json.loads(Path(sys.argv[1]).read_text()):
        assert run(config, Path(run_dir)) == 0


if __name__ == "__main__":
    main()
