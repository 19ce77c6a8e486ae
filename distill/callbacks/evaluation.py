"""Held-out accuracy and student–teacher KL, at the start, every N steps and at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning as L

from distill.callbacks.steps import StepCallback

KEYS = (
    "eval/accuracy",
    "eval/reverse_kl",
    "eval/forward_kl",
    "eval/perplexity",
    "eval/length",
    "eval/stopped",
    "eval/top5_accuracy",
    "eval/ece",
    "eval/ce",
    "eval/agreement",
    "eval/teacher_accuracy",
    "eval/teacher_ece",
    "eval/miou",
    "eval/teacher_miou",
    "eval/dropped_mass/MODEL",
    "eval/NAME_KEY",
)
"""Keys recorded. Of text: accuracy only where the data has a verifier, perplexity only where it has completions, length
and stopped; the probability of rows without a token only for a model that has such rows. Of images: top 5 (from 10
classes on), calibration error, cross-entropy, and the share on which student and teacher agree; where every pixel has a
class, all but top 5, of pixels, and mIoU. The teacher's own and the mass that is dropped only once, at the start; of
networks trained with the student (the teacher of online KD) every time, as ``eval/NAME_KEY``."""

TABLE = ("step", "prompt", "completion", "answer", "score")


class Result(Protocol):
    """What an evaluation returns."""

    @property
    def samples(self) -> Sequence[dict[str, Any]]: ...

    def metrics(self) -> dict[str, float]: ...


class Evaluation(StepCallback):
    """Runs ``evaluate`` when due, ``measure_once`` before the first step; rollouts go to ``samples_file``.

    ``others`` are evaluations of networks that are trained together with the student, by name.
    """

    def __init__(
        self,
        evaluate: Callable[[], Result],
        measure_once: Callable[[], dict[str, float]],
        samples_file: Path,
        every_n_steps: int | None,
        others: Mapping[str, Callable[[], Result]] | None = None,
    ) -> None:
        self.evaluate, self.measure_once, self.others = evaluate, measure_once, others or {}
        self.samples_file, self.every_n_steps = samples_file, every_n_steps

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0:
            pl_module.record(self.measure_once())
            self._run(trainer, pl_module, 0)

    def on_step(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        due = self.every_n_steps is not None and step % self.every_n_steps == 0
        if due or step >= trainer.max_steps:
            self._run(trainer, pl_module, step)

    def _run(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        result = self.evaluate()
        pl_module.record(result.metrics())
        for name, measure in self.others.items():
            told = measure().metrics()
            pl_module.record({key.replace("eval/", f"eval/{name}_", 1): value for key, value in told.items()})
        if not trainer.is_global_zero or not result.samples:
            return
        with self.samples_file.open("a", encoding="utf-8") as file:
            for sample in result.samples:
                file.write(json.dumps({"step": step, **sample}, ensure_ascii=False) + "\n")
        for logger in trainer.loggers:
            if hasattr(logger, "log_text") and hasattr(logger, "log_table"):
                rows = [[step, *(str(sample.get(key, "")) for key in TABLE[1:])] for sample in result.samples]
                logger.log_table("samples", columns=list(TABLE), data=rows, step=step)
