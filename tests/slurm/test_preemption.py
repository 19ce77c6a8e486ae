"""What SLURM does to a job, on two nodes: it continues where it was and ends with the weights of a run left alone."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from distill import checkpoint
from tests import tiny
from tests.slurm import cluster
from tests.slurm.conftest import STEPS, TRAINER, Job, Launcher


def assert_done(job: Job, straight: Job, restarts: int) -> None:
    fields = job.wait("COMPLETED", "FAILED", "CANCELLED")
    assert fields["ExitCode"] == "0:0", job.output
    assert int(fields["Restarts"]) == restarts, job.output
    job.assert_equal_to(straight)


def test_two_nodes_through_the_script(straight: Job) -> None:
    assert straight.cluster.job(straight.number)["NumNodes"] == "2"
    assert [record["step"] for record in tiny.metrics(straight.run_dir)] == list(range(STEPS + 1))


@pytest.mark.parametrize("to", ["all", "one"])
def test_usr1_with_a_slow_rank_is_requeued_and_continues(to: str, launcher: Launcher, straight: Job) -> None:
    job = launcher.submit(TRAINER, slow=0.5)
    job.wait_for_step(3)
    if to == "all":
        job.signal("USR1")
    else:
        _, second = job.ranks()
        second.send_signal(signal.SIGUSR1)
    assert_done(job, straight, restarts=1)
    assert "srun ended with status 138: requeueing" in job.output


def preempt(launcher: Launcher, job: Job) -> None:
    """Submits a job to a higher partition once ``job`` has trained a little, and waits for its end."""
    job.wait_for_step(3)
    command = ["sbatch", "--parsable", "--partition=high", "--nodes=2", "--ntasks-per-node=2", "--output=/dev/null"]
    urgent = subprocess.run(
        [*command, "--wrap=sleep 3"], env=launcher.cluster.environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    launcher.cluster.wait(urgent, "COMPLETED")


def test_a_higher_partition_preempts_the_job(launcher: Launcher, straight: Job) -> None:
    job = launcher.submit(TRAINER, slow=0.5)
    preempt(launcher, job)
    assert_done(job, straight, restarts=1)
    assert "srun ended with status 138: requeueing" in job.output


def test_a_preemption_that_sends_sigterm(straight: Job, tmp_path: Path) -> None:
    with cluster.started(preemption="") as nodes:
        launcher = Launcher(nodes, tmp_path)
        job = launcher.submit(TRAINER, slow=0.5)
        preempt(launcher, job)
        assert_done(job, straight, restarts=1)
        assert "srun ended with status 143: requeueing" in job.output


def test_a_node_that_fails_costs_the_steps_since_the_last_checkpoint(launcher: Launcher, straight: Job) -> None:
    job = launcher.submit(TRAINER, "callbacks.checkpoint.every_n_steps=2", slow=0.5)
    job.wait_for_step(5)
    _, second = job.ranks()
    keeper = second.parent()
    assert keeper is not None
    launcher.cluster.ask("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    # What runs on the node dies with it: the task and the slurmstepd that looks after it.
    keeper.kill()
    second.kill()
    # Refused if the node, whose slurmd is alive in truth, has come back by itself.
    command = ["scontrol", "update", "NodeName=n2", "State=RESUME"]
    subprocess.run(command, env=launcher.cluster.environment, capture_output=True, check=False)
    assert_done(job, straight, restarts=1)


def test_a_killed_rank_ends_the_job_which_is_tried_again(launcher: Launcher, straight: Job) -> None:
    options = ("--nodes=2", "--retries=1")
    job = launcher.submit(TRAINER, "callbacks.checkpoint.every_n_steps=2", options=options, slow=0.3)
    job.wait_for_step(5)
    _, second = job.ranks()
    second.kill()
    assert_done(job, straight, restarts=1)
    assert "task 1: Killed" in job.output


def test_a_killed_rank_is_not_tried_again_unasked(launcher: Launcher) -> None:
    job = launcher.submit(TRAINER, slow=0.3)
    job.wait_for_step(2)
    first, _ = job.ranks()
    first.kill()
    fields = job.wait("FAILED", "COMPLETED")
    assert (fields["JobState"], fields["Restarts"]) == ("FAILED", "0"), job.output


def test_the_wall_clock_guard_stops_before_the_limit_of_the_job(launcher: Launcher, straight: Job) -> None:
    # USR1 comes up to 60 s early; a signal without effect in its place.
    options = ("--nodes=2", "--time=1", "--sbatch=--signal=CONT@1")
    job = launcher.submit(TRAINER, options=options, slow=5)
    assert_done(job, straight, restarts=1)
    assert "srun ended with status 124: requeueing" in job.output


def test_slurm_sends_usr1_before_the_limit_of_the_job(launcher: Launcher, straight: Job) -> None:
    job = launcher.submit(TRAINER, options=("--nodes=2", "--time=2", "--signal-seconds=40"), slow=6)
    assert_done(job, straight, restarts=1)
    assert "srun ended with status 138: requeueing" in job.output


def test_a_cancelled_job_saves_and_stays_away(launcher: Launcher) -> None:
    job = launcher.submit(TRAINER, slow=0.5)
    job.wait_for_step(3)
    launcher.cluster.ask("scancel", job.number)
    fields = job.wait("CANCELLED", "COMPLETED", "FAILED")
    assert (fields["JobState"], fields["Restarts"]) == ("CANCELLED", "0"), job.output
    newest = checkpoint.latest(job.run_dir)
    assert newest is not None
    assert checkpoint.verify(newest).step == tiny.metrics(job.run_dir)[-1]["step"] < STEPS


def test_a_mistake_fails_once(launcher: Launcher) -> None:
    job = launcher.submit(TRAINER, "data.batch_size=3")
    fields = job.wait("FAILED", "COMPLETED")
    assert (fields["JobState"], fields["Restarts"]) == ("FAILED", "0"), job.output
    assert "`data.batch_size` must be a multiple of the number of processes (2), but is 3." in job.output
