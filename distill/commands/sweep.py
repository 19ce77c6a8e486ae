"""``distill COMMAND -m …``: many jobs, each a process with a directory of its own, started by one of Hydra's launchers.

The launchers (basic, joblib, submitit_local, submitit_slurm) differ in where a job's process is started, in what an
exception in it does, and in what of this process it sees. So a job never raises: it runs ``distill`` anew, writes down
how that ended, and the table at the end is made of what was written down.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from distill.commands import compose
from distill.config.redact import redact, redact_text
from distill.errors import UserError
from distill.sweeps import cluster, job, record
from distill.sweeps.stop import SIGNALLED, stoppable

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Set while Hydra runs, which is not to reach the jobs."""
NAMES = "hydra.job.config.override_dirname"
OF_THE_SWEEP = (
    *("sweep=", "hydra.sweep", "hydra/sweeper", "hydra.launcher", "hydra/launcher", "hydra.mode", "hydra.run.dir"),
    NAMES,
)
"""Overrides that concern the sweep, not its jobs; ``hydra.sweep`` stands for ``hydra.sweeper`` too."""
SRUN = {"nodes": "nodes", "ntasks-per-node": "tasks_per_node", "time": "timeout_min"} | {
    key.replace("_", "-"): key
    for key in ("partition", "account", "qos", "constraint", "gres", "gpus_per_node", "cpus_per_task")
}
"""Options of srun and the launcher's keys for them."""


@dataclass(frozen=True)
class SweepJob:
    """What Hydra's launchers call, and pickle, for every job; it returns how the job ended."""

    command: str
    home: Path
    launcher: str
    starter: int
    flags: tuple[str, ...]
    extra: tuple[str, ...]
    start: tuple[str, ...]
    program: tuple[str, ...]
    environment: dict[str, str]

    def __call__(self, config: DictConfig) -> dict[str, Any]:
        node = HydraConfig.get()
        words = [*job_words([*node.overrides.task, *node.overrides.hydra]), *self.extra]
        rank, attempt, environment = cluster.task() if self.launcher.startswith("submitit") else (0, "", {})
        # joblib with one worker uses none.
        here = os.getpid() == self.starter and not self.launcher.startswith("submitit")
        if rank == 0:
            print(f"job {node.job.num}: {job.shown(Path(node.runtime.output_dir))}", flush=True)
        ended = job.run(
            job.Job(
                number=node.job.num,
                command=self.command,
                words=words,
                directory=Path(node.runtime.output_dir),
                home=self.home,
                flags=self.flags,
                start=self.start,
                program=self.program,
                environment=self.environment | environment,
                rank=rank,
                attempt=attempt,
                echo=here,
                forward=not here,
            )
        )
        if ended.status == "interrupted" and self.launcher == "submitit_slurm":
            cluster.requeue(ended.exit_status, rank)
        return asdict(ended)


def run(command: str, words: Sequence[str], config_dir: str | None, hydra_main: Callable[..., None]) -> int:
    """Runs all jobs of a checked command line; ``hydra_main`` takes the task and the words to hand over to Hydra.

    Returns 0, 1 when a job did not end well, or 128 + the signal that stopped the sweep.

    Raises:
        UserError: the directory holds another sweep, there is no job, or the launcher takes none.
    """
    config, jobs, handed_over = compose.sweep_jobs(command, words, config_dir)
    node, home = config.hydra, Path(config.hydra.sweep.dir)
    launcher = str(node.runtime.choices["hydra/launcher"])
    rerun = _open(command, words, jobs, home, launcher)
    task = SweepJob(
        command=command,
        home=home,
        launcher=launcher,
        starter=os.getpid(),
        flags=("--config-dir", str(Path(config_dir).absolute())) if config_dir else (),
        extra=_group(command, config, home),
        start=job.PROGRAM,
        program=_program(launcher, node.launcher),
        environment=_threads(launcher, node.launcher, len(jobs)) | {FULL_ERROR: os.environ.get(FULL_ERROR, "0")},
    )
    own = [
        "hydra.sweeper.params=null",
        job.quoted("hydra.sweep.dir", str(home)),
        f"{NAMES}.exclude_keys={_common(jobs)}",
    ]
    with stoppable(home, elsewhere=launcher == "submitit_slurm") as stopped, _launching(launcher):
        try:
            hydra_main(task, [*handed_over, *own])
        finally:
            _mask(home / "multirun.yaml")
            entries = record.update(home)
            done = all(entry.status == "ok" for entry in entries)
            again = [] if done else [f"\nall that are not ok: {rerun}"]
            print(
                "", *record.table(home, entries), *again, f"\nsweep directory: {job.shown(home)}", sep="\n", flush=True
            )
    return SIGNALLED + stopped[-1] if stopped else int(not done)


def _refuse(words: Sequence[str], jobs: Sequence[Sequence[str]]) -> None:
    if not jobs:
        raise UserError("-m", " ".join(words), "a sweep of at least one job (one of its ranges is empty)")
    if ignored := next((word for word in words if word.lstrip("+").startswith("hydra.run.dir=")), None):
        allowed = "left out with -m: each job has a folder of its own inside hydra.sweep.dir"
        raise UserError("hydra.run.dir", ignored.partition("=")[2], allowed)


def _open(command: str, words: Sequence[str], jobs: Sequence[Sequence[str]], home: Path, launcher: str) -> str:
    """Writes down what is planned; returns the command that goes on with it."""
    _refuse(words, jobs)
    plan = [
        [redact_text(word) for word in job_words(one) if not word.lstrip("+").startswith("resume=")] for one in jobs
    ]
    resumes = any(word.lstrip("+") == "resume=auto" for word in words)
    if (home / record.FILE).exists():
        before = json.loads((home / record.FILE).read_text(encoding="utf-8"))
        if not resumes or before["plan"] != plan:
            allowed = "a new folder (or that of the same sweep, with resume=auto to go on with it)"
            raise UserError("hydra.sweep.dir", str(home), allowed)
    place = (
        []
        if any(word.startswith("hydra.sweep.dir=") for word in words)
        else [job.quoted("hydra.sweep.dir", job.shown(home))]
    )
    rerun = ["distill", command, "-m", *words, *place, *([] if resumes or command != "train" else ["resume=auto"])]
    line = shlex.join(map(redact_text, rerun))
    content = {"command": command, "launcher": launcher, "rerun": line, "plan": plan}
    record.open_sweep(home, content, [record.Record(number, one, "", "") for number, one in enumerate(plan)])
    return line


def job_words(overrides: Sequence[str]) -> list[str]:
    """A job's own overrides as they are typed: without the marks of :func:`distill.commands.overrides.rewrite`."""
    return [word.lstrip("+") for word in overrides if not word.lstrip("+").startswith(OF_THE_SWEEP)]


def _common(jobs: Sequence[Sequence[str]]) -> str:
    """Keys that are the same in all jobs: they do not belong in the names of directories."""
    same = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return f"[{','.join(sorted(job.in_quotes(word.partition('=')[0]) for word in job_words(list(same))))}]"


def _group(command: str, config: DictConfig, home: Path) -> tuple[str, ...]:
    """Jobs of a sweep are members of one W&B group, its own unless the user names one."""
    own = command == "train" and config.logger.group is None
    return (job.quoted("logger.group", home.name),) if own else ()


def _program(launcher: str, options: DictConfig) -> tuple[str, ...]:
    """What a person types in place of ``distill`` to run one job as the launcher does."""
    if launcher == "submitit_slurm":
        flags = {flag: options.get(key) for flag, key in SRUN.items() if options.get(key) is not None}
        return ("srun", *(f"--{flag}={value}" for flag, value in flags.items()), "distill")
    ranks = int(options.get("tasks_per_node", 1))
    return ("distill",) if ranks == 1 else ("torchrun", "--standalone", f"--nproc-per-node={ranks}", "-m", "distill")


def _threads(launcher: str, options: DictConfig, jobs: int) -> dict[str, str]:
    """OpenMP threads per process of jobs that share this machine, so that together they have as many as it has cores.

    Empty where jobs run one by one or on other machines, and where the user has decided.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if launcher == "joblib":
        wanted = int(options.n_jobs)
        together = min(jobs, wanted if wanted > 0 else max(1, cores + 1 + wanted))
    elif launcher == "submitit_local":
        together = jobs * int(options.tasks_per_node)
    else:
        return {}
    return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores // together))}


@contextmanager
def _launching(launcher: str) -> Iterator[None]:
    if launcher.startswith("submitit"):
        # Read when submitit is imported, here and in its jobs.
        os.environ[cluster.PREEMPT] = "USR1"
    try:
        with cluster.outlasting() if launcher.startswith("submitit") else nullcontext():
            yield
    except Exception as error:
        # By name: submitit is an extra.
        if type(error).__name__ != "FailedJobError":
            raise
        said = str(error).strip().splitlines() or ["it said nothing"]
        raise UserError("hydra/launcher", launcher, f"one that takes the jobs ({said[-1]})") from error


def _mask(path: Path) -> None:
    """Hydra writes a sweep's configuration before anybody can mask it."""
    if path.exists():
        content = redact(yaml.safe_load(path.read_text(encoding="utf-8")))
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
