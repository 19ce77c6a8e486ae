"""``distill train``: one run from configuration to exported student, resumable at any moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from distill import checkpoint, distributed, rundir
from distill.config.redact import redact
from distill.models.export import save
from distill.quiet import quiet_libraries
from distill.report import card
from distill.report.collect import collect
from distill.report.render import render
from distill.report.summary import summarise
from distill.training import Run, assemble, close_loggers


def run(config: dict[str, Any], run_dir: Path) -> int:
    """Trains, exports ``model/``, writes ``report.html``; returns 0, or 128 + the signal that stopped the run."""
    quiet_libraries()
    resume = checkpoint.find(config["resume"], run_dir)
    if distributed.rank() == 0:
        rundir.open_run(run_dir, config, resume)
    L.seed_everything(config["seed"], verbose=False)
    parts = assemble(config, run_dir)
    if distributed.rank() == 0:
        rundir.keep_source(run_dir, parts.lm, resumed=resume is not None)
    status = 1
    try:
        parts.trainer.fit(
            parts.module,
            train_dataloaders=parts.loader,
            ckpt_path=None if resume is None else str(resume.state),
            weights_only=True,
        )
        status = 128 + parts.interrupt.received if parts.interrupt.received else 0
    finally:
        close_loggers(parts.trainer, status)
    if parts.trainer.is_global_zero:
        _finish(config, run_dir, parts)
    distributed.barrier()
    return status


def _finish(config: dict[str, Any], run_dir: Path, parts: Run) -> None:
    if not parts.interrupt.received:
        save(parts.lm, run_dir / "model")
        text = card.render(redact(config), collect(run_dir).metrics, parts.train_data.describe())
        (run_dir / "model" / "README.md").write_text(text, encoding="utf-8")
    record = collect(run_dir)
    render([record], run_dir / "report.html")
    print(summarise(record).headline)
    print(f"run directory: {run_dir}\nreport: {run_dir / 'report.html'}", flush=True)
