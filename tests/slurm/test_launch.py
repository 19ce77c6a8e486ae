"""How ranks learn who they are: job arrays, plain srun, and shells in an allocation that are no rank at all."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import tiny
from tests.slurm.conftest import ROOT, STEPS, TINY, TRAINER, Job, Launcher


def test_seeds_are_an_array_of_which_one_task_is_requeued(launcher: Launcher) -> None:
    options = ("--tasks-per-node=1", "--seeds=3,5")
    array = launcher.submit("callbacks.extra.slow.rank=0", options=options, slow=0.5).number
    tasks = [Job(launcher.cluster, f"{array}_{index}", launcher.runs) for index in range(2)]
    # SLURM gives one of the tasks the id of the whole array: a requeue by that id would be one of all tasks.
    for task in tasks:
        task.wait("RUNNING", "COMPLETED")
    whole = next(task for task in tasks if launcher.cluster.job(task.number)["JobId"] == array)
    whole.wait_for_step(2)
    whole.signal("USR1")
    fields = [task.wait("COMPLETED", "FAILED") for task in tasks]
    assert [field["ExitCode"] for field in fields] == ["0:0", "0:0"], "".join(task.output for task in tasks)
    assert [int(field["Restarts"]) for field in fields] == [int(task is whole) for task in tasks]
    for task, seed in zip(tasks, (3, 5), strict=True):
        assert f"seed: {seed}" in (task.run_dir / "config.yaml").read_text().splitlines()
        assert tiny.metrics(task.run_dir)[-1]["step"] == STEPS


def salloc(launcher: Launcher, shell: str) -> subprocess.CompletedProcess[str]:
    """Runs shell commands in an interactive allocation of two tasks on two nodes."""
    command = ["salloc", "--nodes=2", "--ntasks-per-node=1", "bash", "-c", shell]
    environment = {**launcher.cluster.environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)


def train(launcher: Launcher, *overrides: str) -> str:
    return " ".join([sys.executable, "-m", "distill", "train", *TINY, *overrides, f"hydra.run.dir={launcher.runs}/run"])


def test_plain_srun_is_one_run_of_two_ranks(launcher: Launcher) -> None:
    done = salloc(launcher, f"srun --kill-on-bad-exit=1 {train(launcher, TRAINER, 'trainer.max_steps=2')}")
    assert done.returncode == 0, done.stderr
    assert tiny.metrics(launcher.runs / "run")[-1]["step"] == 2
    assert "trainer.strategy" not in done.stderr


@pytest.mark.parametrize("shell", ["{}", "srun --ntasks=1 --nodes=1 {}"], ids=["shell", "one task"])
def test_one_process_in_an_allocation_of_two_tasks_waits_for_nobody(shell: str, launcher: Launcher) -> None:
    done = salloc(launcher, shell.format(train(launcher, "trainer.max_steps=2")))
    assert done.returncode == 0, done.stderr
    assert tiny.metrics(launcher.runs / "run")[-1]["step"] == 2
