"""Two ranks that train many runs in one launch, as starting them costs more than a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from distill.commands import train
from tests import processes

Runs = Sequence[tuple[dict[str, Any], Path | str]]
"""Configurations, each with its run directory."""


def launch(runs: Runs, folder: Path, work: Callable[[Runs], int] | None = None) -> None:
    """Has two ranks do ``work``, which is to train the runs in turn; it has to succeed."""
    processes.together(folder, work or train_all, runs, timeout=1100)


def train_all(runs: Runs) -> int:
    torch.set_num_threads(1)
    return max(train.run(config, Path(run_dir)) for config, run_dir in runs)
