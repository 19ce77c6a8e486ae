"""A teacher that leaves its base behind stops all ranks after the same step, saved."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from distill import checkpoint
from distill.commands import train
from distill.errors import RunError
from tests import processes, tiny
from tests.distributed.parity import STRATEGIES

STOPPED = 7


def stopped(config: dict[str, Any], run_dir: Path) -> int:
    """The rank that speaks says why; what it returns is neither an end nor a failure of its own."""
    torch.set_num_threads(1)
    try:
        return train.run(config, run_dir)
    except RunError as error:
        print(f"said: {error}", flush=True)
        return STOPPED


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_all_ranks_stop_after_the_same_step(strategy: str, tmp_path: Path) -> None:
    changes = {"callbacks__collapse": {"every_n_steps": 2, "max_kl_to_base": 1e-9}, "trainer__max_steps": 9}
    config = tiny.config("online_kd", **tiny.ADAPTED | changes | STRATEGIES[strategy])
    ranks = processes.Ranks(tmp_path, stopped, config, tmp_path / "run")
    assert ranks.wait(120) == [STOPPED, 1], ranks.said()[-4000:]
    assert re.search(r"said: eval/teacher_kl_to_base is \S+, above 1e-09 .* at step 2", ranks.said())
    assert checkpoint.steps(tmp_path / "run") == [2]
