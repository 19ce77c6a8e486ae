"""Jobs that submitit starts, here or on SLURM: which rank this process is, and what becomes of a job that is lost.

One owner of requeueing: the run itself. submitit's handler requeues at once, in the middle of whatever the rank does;
a run saves at the next step boundary first. So the signal before the time limit is the one that a run listens to, and
in the job's process submitit's handler gives way to one that passes signals on (see :mod:`distill.sweeps.job`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

PREEMPT = "SUBMITIT_PREEMPT_SIGNAL"
OUT_OF_TIME = (124, 128 + signal.SIGUSR1)
"""Exit statuses of a run that has saved because its time is nearly up: told by its clock, or by SLURM."""
RESTARTS = 100
POLL_SECONDS, END_SECONDS = 2.0, 120.0
GRACE_SECONDS = 10.0
"""How long a result may take to appear on a shared file system after its job has left the queue."""


def task() -> tuple[int, str, dict[str, str]]:
    """This task of a submitit job: its rank, a name for this start of the job, and the environment that makes it so.

    On SLURM a process finds its rank in what srun has set; a local job has nothing but submitit's word for it, and
    none is needed for a job of one task.
    """
    import submitit

    here = submitit.JobEnvironment()
    attempt = f"{here.job_id}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    if here.cluster == "slurm":
        cpus = os.environ.get("SLURM_CPUS_PER_TASK")
        limits = cpus is not None and "OMP_NUM_THREADS" not in os.environ
        return here.global_rank, attempt, {"OMP_NUM_THREADS": str(cpus)} if limits else {}
    if here.num_tasks == 1:
        return 0, attempt, {}
    torch = submitit.helpers.TorchDistributedEnvironment()
    names = ("rank", "world_size", "local_rank", "local_world_size", "master_port")
    environment = {name.upper(): str(getattr(torch, name)) for name in names}
    return here.global_rank, attempt, environment | {"MASTER_ADDR": "127.0.0.1"}


def requeue(exit_status: int | None, rank: int) -> None:
    """On SLURM, sees to it that a run which stopped for lack of time, and has saved, gets more.

    Whoever is to be ended by SLURM (requeued, preempted, cancelled) waits for that: a result would tell the sweep that
    this job is over. Returns after END_SECONDS, when somebody else than SLURM has sent the signal.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return
    if rank == 0 and exit_status in OUT_OF_TIME and int(os.environ.get("SLURM_RESTART_COUNT", "0")) < RESTARTS:
        asked = subprocess.run(["scontrol", "requeue", _job()], check=False)
        if asked.returncode != 0:
            return
    time.sleep(END_SECONDS)


def _job() -> str:
    """This job as scontrol names it: for one task of an array, SLURM_JOB_ID may be that of the whole array."""
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


@contextmanager
def outlasting() -> Iterator[None]:
    """Within it a job that ends without a result (out of memory, node failure, scancel) does not end the sweep.

    submitit raises for the first such job, with the others still running; and where SLURM keeps no accounting it
    would wait for it forever.
    """
    from submitit.core.core import Job
    from submitit.core.utils import FailedJobError, UncompletedJobError

    original: Callable[[Any], list[Any]] = Job.results

    def results(job: Any) -> list[Any]:
        lost = [SimpleNamespace(return_value=None)]
        if type(job).__name__ == "SlurmJob" and not _ended(job):
            return lost
        try:
            return original(job)
        except (FailedJobError, UncompletedJobError):
            return lost

    setattr(Job, "results", results)  # noqa: B010
    try:
        yield
    finally:
        setattr(Job, "results", original)  # noqa: B010


def _ended(job: Any) -> bool:
    """Waits until a SLURM job has left its result, or the queue without one."""
    tasks = [job.task(number).paths.result_pickle for number in range(job.num_tasks)]
    gone_since = None
    while not all(path.exists() for path in tasks):
        if _queued(job.job_id):
            gone_since = None
        elif gone_since is None:
            gone_since = time.monotonic()
        elif time.monotonic() - gone_since > GRACE_SECONDS:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _queued(job_id: str) -> bool:
    """Whether SLURM still has the job; True when it does not answer."""
    asked = subprocess.run(["squeue", "-h", "-o", "%T", "-j", job_id], capture_output=True, text=True, check=False)
    if asked.returncode == 0:
        return bool(asked.stdout.strip())
    return "Invalid job id" not in asked.stderr
