"""A mistake that only one rank sees ends all of them, and says which rank speaks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "distill")


def train(*words: str) -> str:
    """Trains a tiny student on two ranks, which has to fail; returns what they said."""
    fixed = ("recipe=sft", "student=llama_tiny", "trainer=ddp_cpu", "trainer.max_steps=2", "callbacks=none")
    done = subprocess.run(
        [*TORCHRUN, "train", *fixed, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    return done.stderr


def test_a_folder_of_each_node_is_refused(tmp_path: Path) -> None:
    said = train(f"hydra.run.dir={tmp_path}/${{oc.env:RANK}}")
    assert "must be a folder that all ranks share (rank 1 does not see what rank 0 writes)" in said
    assert not list(tmp_path.rglob("model"))


def test_a_rank_that_fails_alone_ends_the_run(tmp_path: Path) -> None:
    # Only rank 0 looks at the run directory; rank 1 goes on and would wait for it.
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 0}\n')
    spoken = [line for line in train(f"hydra.run.dir={tmp_path}").splitlines() if line.startswith("[rank ")]
    assert spoken == [
        f"[rank 0] error: `hydra.run.dir` must be a new folder (or pass resume=auto to continue the run in it), "
        f"but is '{tmp_path}'."
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
