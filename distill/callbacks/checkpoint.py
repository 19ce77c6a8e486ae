"""Saves a resumable checkpoint every N steps, when stopping and at the end; keeps the last, the best, milestones."""

from __future__ import annotations

import difflib
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from distill import checkpoint, distributed, manifest
from distill.callbacks.steps import StepCallback, is_last
from distill.errors import RunError, UserError
from distill.manifest import File, Layout, Manifest
from distill.retention import Retention

NOT_FROM_THE_START = ("sparsity", "update", "geometry/", "optimizer/", "subspace/", "mask/")
"""Metrics that the first step cannot be expected to have."""
WRITER_ERROR = "PytorchStreamWriter"
"""How torch tells, in a RuntimeError, that a file could not be written."""

log = logging.getLogger(__name__)


class SaveCheckpoint(StepCallback, Checkpoint):
    """Writes through :mod:`distill.checkpoint`.

    Being a Lightning ``Checkpoint`` it runs after every other callback: what a step logged is on disk before the
    checkpoint of that step is, so a resumed run has neither gaps nor doubles. ``measured`` tells the metrics of the
    step that has just been taken; the monitored one goes into the manifest, where retention finds it after a resume.
    """

    label = "checkpoint"

    def __init__(
        self,
        run_dir: Path,
        every_n_steps: int,
        rules: Retention,
        layout: Layout,
        measured: Callable[[], Mapping[str, float]],
    ) -> None:
        self.root = run_dir / "checkpoints"
        self.every_n_steps, self.rules, self.layout, self.measured = every_n_steps, rules, layout, measured
        self._from_the_start = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._from_the_start = trainer.global_step == 0
        self._seen = set(self.measured())

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        if step == 1 and self._from_the_start:
            self._check_monitor()
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
            files = self._flushed(staged)
            if trainer.is_global_zero:
                checkpoint.publish(staged, Manifest(step, self.layout, files, *self._monitored()))
                checkpoint.prune(self.root, self.rules)
        except (OSError, RuntimeError) as error:
            if not isinstance(error, OSError) and WRITER_ERROR not in str(error):
                raise
            if trainer.is_global_zero:
                shutil.rmtree(staged, ignore_errors=True)
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            text = f"cannot save a checkpoint in {self.root}: {reason}; earlier checkpoints are intact."
            raise RunError(text) from error
        distributed.barrier()

    def _flushed(self, staged: Path) -> dict[str, File]:
        """Every rank hashes and flushes what it wrote; the gathering is the moment after which all of it is on disk."""
        mine: dict[str, File] | OSError
        try:
            mine = manifest.written_by(staged, distributed.rank(), distributed.world_size())
        except OSError as error:
            mine = error
        files = dict[str, File]()
        # All ranks fail together, or some would wait for the others.
        for rank, theirs in enumerate(distributed.gather_objects(mine)):
            if not isinstance(theirs, dict):
                raise OSError(f"rank {rank}: {theirs}")
            files |= theirs
        return files

    def _check_monitor(self) -> None:
        """After the first step every metric has been seen but the rare ones, so a mistyped key costs one step.

        Raises:
            UserError: named ``callbacks.checkpoint.monitor``.
        """
        key, known = self.rules.monitor, self._seen | set(self.measured())
        if key is None or key in known or key.startswith(NOT_FROM_THE_START):
            return
        close = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError("callbacks.checkpoint.monitor", key, f"a metric of this run ({hint}{', '.join(sorted(known))})")

    def _monitored(self) -> tuple[str | None, float | None]:
        key = self.rules.monitor
        if key is None:
            return None, None
        value = self.measured().get(key)
        if value is None:
            log.warning("`%s` was not measured at this step: its checkpoint cannot be among the best", key)
        elif value - value != 0:
            log.warning("`%s` is %s: the checkpoint of this step cannot be among the best", key, value)
            value = None
        return key, value
