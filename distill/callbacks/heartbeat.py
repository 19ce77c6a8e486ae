"""Tells the watchdog what Lightning is about, and lowers the limit of collectives when training begins."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger

from distill import distributed, watchdog


class Heartbeat(L.Callback):
    """Forward, backward and the rest of each micro-batch as phases; ``timeout`` (seconds) is ``trainer.timeout``."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        watchdog.before_end.extend(partial(_flush, logger) for logger in trainer.loggers)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Every callback's on_train_start is over, the evaluation at step 0 with them.
        watchdog.training(True)
        distributed.set_timeout(self.timeout)

    def on_train_end(self, *_: object) -> None:
        # What comes now, the export, is as long as loading was.
        watchdog.training(False)
        watchdog.enter("export")

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        watchdog.enter("forward", trainer.global_step + 1)

    def on_before_backward(self, *_: object) -> None:
        watchdog.enter("backward")

    def on_train_batch_end(self, *_: object) -> None:
        watchdog.enter("step")


def _flush(logger: Logger) -> None:
    """What a logger holds back goes to its file; ``metrics.jsonl`` is written line by line."""
    logger.save()
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(experiment, "flush"):
        experiment.flush()
