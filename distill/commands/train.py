"""``distill train``: one run from configuration to exported student, resumable at any moment."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import lightning as L

from distill import checkpoint, data, distributed, loggers, resharding, rundir, startup, strategies, watchdog
from distill.commands import stages
from distill.commands.stages import Loggers
from distill.config.checks_stages import named
from distill.config.redact import redact
from distill.config.stages import RUN, runs
from distill.errors import RunError, UserError
from distill.heartbeat import watching
from distill.models.export import save
from distill.quiet import quiet_libraries
from distill.report import card
from distill.report.collect import collect
from distill.report.render import render
from distill.report.summary import summarise
from distill.training import Parts, Run, assemble, load


def run(config: dict[str, Any], run_dir: Path) -> int:
    """Trains, exports ``model/``, writes ``report.html``; returns 0, or 128 + the signal that stopped it, 124: time.

    Raises:
        RunError: the run has ended itself, saved; the ranks beside the first one return 1.
    """
    quiet_libraries()
    strategies.choose_accelerator(config["trainer"])
    startup.check_devices(config["trainer"])
    planned = runs(config)
    if len(planned) > 1:
        return stages.run(config, planned, run_dir, _train, _told_again)
    try:
        return _train(planned[RUN], run_dir)
    except UserError as error:
        # A part of a mixture that was a stage.
        raise error if config["stages"] is None else UserError(named(error.key), error.value, error.allowed) from error


def _train(config: dict[str, Any], run_dir: Path, more: Loggers = list) -> int:
    """One run; ``more`` are loggers beside its own, made once its directory is open."""
    with _watched(config):
        status, reason = _run(config, run_dir, more)
        distributed.barrier()
    if reason and distributed.rank() == 0:
        raise RunError(reason)
    return status


def _told_again(config: dict[str, Any], run_dir: Path) -> int:
    """What is left to do of a run that ended after its export: its model card and its report."""
    with _watched(config):
        with watchdog.phase("load"):
            parts = load(config)
        if distributed.rank() == 0:
            _finish(config, run_dir, parts, complete=True)
        distributed.barrier()
    return 0


def _watched(config: dict[str, Any]) -> AbstractContextManager[None]:
    limits = watchdog.Limits(config["trainer"]["startup_timeout"], config["trainer"]["timeout"])
    return watching(limits, "nccl" if strategies.on_gpu(config["trainer"]) else "gloo")


def _run(config: dict[str, Any], run_dir: Path, more: Loggers) -> tuple[int, str]:
    """The exit status, and why the run has ended itself, if it has."""
    resume = checkpoint.agree(config["resume"], run_dir)
    if distributed.rank() == 0:
        rundir.refuse_overwriting(run_dir, resume, config["resume"])
    L.seed_everything(config["seed"], verbose=False)
    wandb, status = loggers.connect(config, run_dir), 1
    try:
        with watchdog.phase("load"):
            parts = load(config)
        if resume is not None:
            mask = None if parts.subnetwork is None else parts.subnetwork.checksum
            startup.check_resumable(resume, parts.trained, mask, config)
        if distributed.rank() == 0:
            rundir.open_run(run_dir, config, resume)
            rundir.keep_source(run_dir, parts.lm, parts.cotrained, resumed=resume is not None)
        rundir.check_shared(run_dir)
        if resume is not None:
            resharding.prepare(parts.trained, resume, config["trainer"])
        assembled = assemble(config, run_dir, parts, wandb)
        assembled.trainer.loggers = [*assembled.trainer.loggers, *more()]
        status = _fit(assembled, resume)
    finally:
        loggers.disconnect(wandb, status)
    if status == 0:
        with watchdog.phase("export"):
            if config["online"] is not None and config["online"]["export"]:
                for name, network in parts.cotrained.items():
                    save(network, run_dir / rundir.ONLINE / name / "model")
            # Last: where it is, everything is.
            save(parts.lm, run_dir / "model")
    if distributed.rank() == 0:
        _finish(config, run_dir, parts, complete=status == 0)
    return status, assembled.interrupt.reason


def _fit(assembled: Run, resume: checkpoint.Checkpoint | None) -> int:
    with assembled.interrupt.listening():
        assembled.trainer.fit(
            assembled.module,
            train_dataloaders=assembled.loader,
            ckpt_path=None if resume is None else str(resume.state),
            weights_only=True,
        )
    return assembled.interrupt.status


def _finish(config: dict[str, Any], run_dir: Path, parts: Parts, complete: bool) -> None:
    watchdog.enter("report")
    record = collect(run_dir)
    if complete:
        held_out = min(data.judged(config)["eval_size"], len(parts.eval_data))
        text = card.render(redact(config), record.metrics, parts.train_data.describe(), held_out)
        (run_dir / "model" / "README.md").write_text(text, encoding="utf-8")
    render([record], run_dir / "report.html")
    print(summarise(record).headline)
    print(f"run directory: {run_dir}\nreport: {run_dir / 'report.html'}", flush=True)
