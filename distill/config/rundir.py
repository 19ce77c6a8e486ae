"""Where a run writes: a folder that every rank of the run, and every attempt of a job, agrees on."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path

import psutil

from distill.config.redact import redact_text
from distill.config.world import world_size
from distill.errors import UserError


def run_id() -> str:
    """An id equal on every rank: ``DISTILL_RUN_ID``, the SLURM job, torchrun's run id, or the launcher's start time.

    Raises:
        UserError: the ranks are spread over several nodes and nothing they share names the run.
    """
    if "DISTILL_RUN_ID" not in os.environ and "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    for name in ("DISTILL_RUN_ID", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        value = os.environ.get(name, "")
        if value not in ("", "none"):
            return value
    world = world_size()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if world > local:
        allowed = f"set to one id for all nodes (WORLD_SIZE={world}, LOCAL_WORLD_SIZE={local}), or hydra.run.dir given"
        raise UserError("DISTILL_RUN_ID", None, allowed)
    # A clock read by each rank would differ; the start of the launcher, their common parent, does not.
    process = psutil.Process(os.getppid() if world > 1 else os.getpid())
    started = datetime.fromtimestamp(process.create_time(), UTC).astimezone()
    return f"{started:%Y%m%d-%H%M%S}-{process.pid}"


def run_dir(run_name: str, resume: str | None) -> str:
    """``runs/NAME-ID`` (``DISTILL_RUNS`` moves ``runs``), or the run directory that ``resume`` is, or lies in."""
    if resume not in (None, "auto"):
        path = Path(str(resume))
        if path.absolute().parent.name == "checkpoints":
            return str(path.absolute().parent.parent)
        if (path / "checkpoints").is_dir():
            return str(path)
    return str(root() / f"{run_name}-{run_id()}")


def sweep_dir() -> str:
    """``runs/sweep-ID``."""
    return str(root() / f"sweep-{run_id()}")


def job_dir(number: int, overrides: str) -> str:
    """A sweep job's folder: its number and what sets it apart, as one short path component without secrets.

    Nothing in it needs quotes, in a shell or as the value of an override.
    """
    name = re.sub(r"[^\w.@-]+", "_", redact_text(overrides).replace("+", "").replace("=", "-"))
    return f"{number}-{name}"[:100].rstrip("-")


def unusable(path: Path) -> str | None:
    """Why nothing can be written into the folder ``path``, which need not exist yet; None if it can."""
    path = path.absolute()
    nearest = next(part for part in (path, *path.parents) if part.exists())
    if not nearest.is_dir():
        return f"{nearest} is a file"
    return None if os.access(nearest, os.W_OK | os.X_OK) else f"no permission to write into {nearest}"


def root() -> Path:
    """The folder of all runs."""
    return Path(os.environ.get("DISTILL_RUNS", "runs"))
