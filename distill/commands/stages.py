"""The stages of ``distill train``, one run after the other, and what they leave together."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from distill import chain, distributed, instruments, rundir, strategies, tasks, watchdog
from distill.chain import Stage
from distill.config.flat import flat
from distill.errors import RunError, UserError
from distill.heartbeat import watching
from distill.report import card
from distill.report.collect import collect
from distill.report.render import render
from distill.report.stages import table
from distill.report.summary import summarise

Loggers = Callable[[], list[Logger]]
Train = Callable[[dict[str, Any], Path, Loggers], int]
"""A run of one stage; ``Loggers`` are called by every rank once its directory is open."""
Complete = Callable[[dict[str, Any], Path], int]
"""Writes what a stage leaves beside its student."""


def run(
    config: dict[str, Any], planned: dict[str, dict[str, Any]], run_dir: Path, train: Train, complete: Complete
) -> int:
    """Runs what is not finished of the stages ``planned``, and returns the status of the one that stopped, or 0.
    ``complete`` is for one that was killed after its export, without a checkpoint.

    Raises:
        UserError: the directory is another run's, or something that any of the stages reads is not there.
        RunError: that was rank 0's finding, which has told it.
    """
    found = chain.link(planned, run_dir, config["resume"])
    limits = watchdog.Limits(config["trainer"]["startup_timeout"], config["trainer"]["timeout"])
    with watching(limits, "nccl" if strategies.on_gpu(config["trainer"]) else "gloo"):
        finished, exported = _open(config, run_dir, found)
    if exported:
        complete(found[finished].config, found[finished].folder)
        if distributed.rank() == 0:
            found[finished].finish()
    status = 0
    for number in range(finished + exported, len(found)):
        status = _train(run_dir, found[: number + 1], len(found), train)
        if status != 0:
            break
    if distributed.rank() == 0:
        _close(run_dir, found, complete=status == 0)
    return status


def _open(config: dict[str, Any], run_dir: Path, found: Sequence[Stage]) -> tuple[int, bool]:
    """How many stages are finished, and whether the next is exported, as rank 0 sees it. A collective."""
    problem: UserError | None = None
    if distributed.rank() == 0:
        try:
            chain.refuse_overwriting(run_dir, found, config["resume"])
            for stage in found:
                if not stage.finished:
                    _check(config, stage)
            rundir.describe(run_dir, config)
        except UserError as error:
            problem = error
    done = [stage.finished for stage in found]
    first = done.index(False) if False in done else len(done)
    exported = first < len(done) and found[first].exported
    told: Any = distributed.gather_objects((problem is not None, first, exported))
    if problem is not None:
        raise problem
    if told[0][0]:
        raise RunError("rank 0 has refused to start; its message tells why.")
    return told[0][1], told[0][2]


def _check(config: dict[str, Any], stage: Stage) -> None:
    """Reads what a stage would read, but for weights: hours may pass before it is its turn.

    Raises:
        UserError: something is not there, or does not fit.
    """
    try:
        tasks.of(stage.config).check_readable(stage.config | {"student": config["student"]})
        for name, component in stage.config["callbacks"]["extra"].items():
            instruments.instantiate(f"callbacks.extra.{name}", component)
    except UserError as error:
        raise _named(config, stage.name, error) from error


def _named(config: dict[str, Any], name: str, error: UserError) -> UserError:
    """The error under the key that a stage has given, where it has."""
    key, last = error.key, list(config["stages"])[-1]
    if key.startswith("eval_data.") and config["eval_data"] is None:
        key, name = key.removeprefix("eval_"), last
    given = dict(flat(config["stages"][name]))
    return UserError(f"stages.{name}.{key}" if key in given else key, error.value, error.allowed)


def _train(run_dir: Path, until: Sequence[Stage], total: int, train: Train) -> int:
    """The last stage of ``until``."""
    stage = until[-1]

    def loggers() -> list[Logger]:
        if distributed.rank() == 0:
            # The stage's own records end where it goes on from.
            chain.gather(run_dir, until)
            if not (run_dir / "source").exists():
                chain.adopt(until[0].folder / "source", run_dir / "source")
        return [chain.WholeLogger(run_dir, until)]

    if distributed.rank() == 0:
        print(f"stage {len(until)} of {total}: {stage.name}, {stage.steps} steps", flush=True)
    status = train(stage.config, stage.folder, loggers)
    if distributed.rank() == 0:
        if status == 0:
            stage.finish()
        chain.gather(run_dir, until)
    # Models and optimizer states go before those of the next stage come.
    gc.collect()
    return status


def _close(run_dir: Path, found: Sequence[Stage], complete: bool) -> None:
    """What the whole run leaves; with the last stage also its model."""
    if complete:
        chain.gather(run_dir, found)
        chain.adopt(found[-1].folder / "model", run_dir / "model")
        text = (found[-1].folder / "model" / "README.md").read_text(encoding="utf-8")
        # Not into the file, which is the stage's too.
        (run_dir / "model" / "README.md").unlink()
        (run_dir / "model" / "README.md").write_text(text + card.stages(table(run_dir)), encoding="utf-8")
    record = collect(run_dir)
    render([record], run_dir / "report.html")
    print(f"all stages: {summarise(record).headline}")
    print(f"run directory: {run_dir}\nreport: {run_dir / 'report.html'}", flush=True)
