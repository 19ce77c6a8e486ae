"""Saves a resumable checkpoint every N steps, when stopping, and at the end."""

from __future__ import annotations

import shutil
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from distill import checkpoint, distributed
from distill.callbacks.steps import StepCallback, is_last
from distill.errors import RunError


class SaveCheckpoint(StepCallback, Checkpoint):
    """Writes through :mod:`distill.checkpoint`.

    Being a Lightning ``Checkpoint`` it runs after every other callback: what a step logged is on disk before the
    checkpoint of that step is, so a resumed run has neither gaps nor doubles.
    """

    def __init__(self, run_dir: Path, every_n_steps: int, keep_last: int) -> None:
        self.root = run_dir / "checkpoints"
        self.every_n_steps, self.keep_last = every_n_steps, keep_last

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        if step % self.every_n_steps == 0 or is_last(trainer, step):
            self.save(trainer, step)

    def save(self, trainer: L.Trainer, step: int) -> None:
        """A collective. A failed write (a full disk) leaves the earlier checkpoints as they were and raises."""
        staged = self.root / f"step-{step:08d}.partial"
        try:
            if trainer.is_global_zero:
                checkpoint.staging(self.root, step)
            distributed.barrier()
            trainer.save_checkpoint(staged / checkpoint.STATE)
            if trainer.is_global_zero:
                checkpoint.publish(staged, step, self.keep_last)
        except OSError as error:
            shutil.rmtree(staged, ignore_errors=True)
            reason = error.strerror or str(error)
            text = f"cannot save a checkpoint in {self.root}: {reason}; earlier checkpoints are intact."
            raise RunError(text) from error
        distributed.barrier()
