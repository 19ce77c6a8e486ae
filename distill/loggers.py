"""Where a run's metrics go: ``metrics.jsonl`` always; W&B, TensorBoard and CSV when asked for."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from distill import distributed, rundir
from distill.callbacks import jsonl
from distill.config.redact import redact
from distill.errors import RunError, UserError


def build(config: dict[str, Any], run_dir: Path, wandb: WandbLogger | None) -> list[Logger]:
    """The loggers of a run whose directory is open. Secrets are masked before they are logged."""
    options, earlier = redact(config["logger"]), _logged_before(run_dir)
    loggers: list[Logger] = [jsonl.JsonlLogger(run_dir)]
    if options["tensorboard"]:
        # What an earlier attempt logged after the checkpoint is not shown.
        first = int(earlier[-1]["step"]) + 1 if earlier else None
        loggers.append(TensorBoardLogger(run_dir, name="tensorboard", version="", purge_step=first))
    if options["csv"]:
        loggers.append(CSVLogger(run_dir, name="csv", version=""))
        for record in earlier:
            # Lightning deletes the file of the earlier attempt.
            loggers[-1].log_metrics({key: value for key, value in record.items() if key != "step"}, record["step"])
    return loggers if wandb is None else [*loggers, wandb]


def connect(config: dict[str, Any], run_dir: Path) -> WandbLogger | None:
    """Starts the W&B run, where Lightning would do so after everything has loaded; None if there is to be none.

    Raises:
        UserError: it is online without a login.
        RunError: W&B does not answer.
    """
    options = redact(config["logger"])
    if options["wandb"] == "off":
        return None
    from wandb import errors

    logger = WandbLogger(
        save_dir=run_dir,
        offline=options["wandb"] == "offline",
        id=rundir.wandb_id(run_dir),
        resume="allow",
        config=redact(config),
        **{key: options[key] for key in ("project", "entity", "group", "name", "tags")},
    )
    try:
        with _nobody_to_ask():
            _ = logger.experiment
    except (errors.UsageError, errors.AuthenticationError) as error:
        allowed = f"'offline' (choose logger=wandb_offline) unless `wandb login` has been run ({_one_line(error)})"
        raise UserError("logger.wandb", options["wandb"], allowed) from error
    except errors.Error as error:
        raise RunError(f"W&B does not answer ({_one_line(error)}); logger=wandb_offline needs no network.") from error
    return logger


def disconnect(wandb: WandbLogger | None, status: int) -> None:
    """Ends the W&B run, which Lightning leaves open: the next run of a sweep needs one of its own."""
    if wandb is not None and distributed.rank() == 0:
        wandb.experiment.finish(exit_code=status)


@contextmanager
def _nobody_to_ask() -> Iterator[None]:
    """Within it W&B finds no terminal, where it would wait for somebody to log in."""
    terminal = sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = terminal


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _logged_before(run_dir: Path) -> list[dict[str, Any]]:
    """The records up to the checkpoint that a run resumes from; none on ranks that do not log."""
    path = run_dir / jsonl.FILE
    if distributed.rank() != 0 or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
