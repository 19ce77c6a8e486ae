"""What a person sees while a run goes on: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from distill import watchdog
from distill.callbacks.steps import StepCallback, is_last

PLAIN_SECONDS = 10.0
HEADLINE = "sparsity/bf16/1e-5"


def headline(metrics: dict[str, float]) -> str:
    """``loss 0.123 · accuracy 45.0 % · sparsity 71.2 % · 1,234 tok/s`` from the latest metrics."""
    parts = []
    if "loss" in metrics:
        parts.append(f"loss {metrics['loss']:.4f}")
    if "eval/accuracy" in metrics:
        parts.append(f"accuracy {100 * metrics['eval/accuracy']:.1f} %")
    if HEADLINE in metrics:
        parts.append(f"sparsity {100 * metrics[HEADLINE]:.1f} %")
    if "tokens_per_second" in metrics:
        parts.append(f"{metrics['tokens_per_second']:,.0f} tok/s")
    return " · ".join(parts)


class ProgressReport(StepCallback):
    """Step, loss, accuracy, sparsity, tokens/s and time left; ``mode`` is auto, bar, plain or off.

    :meth:`activity` is called from inside long phases (rollout, evaluation) so that the display keeps moving.
    """

    def __init__(self, mode: str, latest: Callable[[], dict[str, float]]) -> None:
        self.console = Console(stderr=True)
        self.mode = ("bar" if self.console.is_terminal else "plain") if mode == "auto" else mode
        self.latest = latest
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._step = self._first = self._total = 0
        self._began = self._spoke = time.monotonic()
        self._busy = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not trainer.is_global_zero:
            self.mode = "off"
        self._total = trainer.max_steps
        if self.mode == "bar" and self._bar is None:
            columns = (BarColumn(24), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task("starting", total=trainer.max_steps)
            self._bar.start()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._step = self._first = trainer.global_step
        self._began = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._step)
        if self._step:
            self._say(f"resuming after step {self._step}")
        elif self.latest():
            self._say(f"before training: {headline(self.latest())}")

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        self._step, self._busy = step, 0
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=headline(self.latest()))
        elif self._due() or is_last(trainer, step):
            self._say(f"step {step}/{self._total} · {headline(self.latest())} · {self._left()} left")

    def activity(self, phase: str, tokens: int) -> None:
        """Tells that ``tokens`` more tokens were generated in ``phase`` (rollout, evaluation)."""
        self._busy += tokens
        watchdog.progress()
        if self._bar is not None:
            text = f"{headline(self.latest())} · {phase} {self._busy:,} tokens"
            self._bar.update(self._task, description=text.removeprefix(" · "))
        elif self._due():
            self._say(f"step {self._step}/{self._total} · {phase} {self._busy:,} tokens")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _due(self) -> bool:
        return self.mode == "plain" and time.monotonic() - self._spoke >= PLAIN_SECONDS

    def _left(self) -> str:
        done = max(self._step - self._first, 1)
        seconds = (time.monotonic() - self._began) / done * (self._total - self._step)
        return f"{int(seconds // 60)}:{int(seconds % 60):02d}"

    def _say(self, line: str) -> None:
        self._spoke = time.monotonic()
        if self._bar is not None:
            self.console.print(line)
        elif self.mode == "plain":
            print(line, file=sys.stderr, flush=True)
