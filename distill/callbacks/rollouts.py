"""A few of the sequences that a step trained on, as text, with the tokens the teacher put into them marked."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import lightning as L

from distill import watchdog
from distill.callbacks.metrics import Clock
from distill.callbacks.steps import StepCallback
from distill.types import Row

FILE = "rollouts.jsonl"
MARKS = "⟦", "⟧"
"""Around what the teacher wrote."""
TABLE = ("step", "prompt", "completion", "stopped")

Decode = Callable[[list[int]], str]


class Rollout(Protocol):
    """As ``data.window`` has it."""

    def __call__(self, samples: list[Any], copies: list[int], step: int) -> list[Any]: ...


class Rollouts(StepCallback):
    """Writes the first ``samples`` rows of rank 0 at step 1, every N steps and the last; :meth:`see` hears of all."""

    def __init__(self, path: Path, decode: Decode, every_n_steps: int, samples: int) -> None:
        self.path, self.decode, self.every_n_steps, self.samples = path, decode, every_n_steps, samples
        self.rows: list[Row] = []

    def see(self, rows: Sequence[Row]) -> None:
        """The rows of the step to come."""
        self.rows = list(rows[: self.samples])

    def on_step(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        due = step == 1 or step % self.every_n_steps == 0 or step >= trainer.max_steps
        if not due or not trainer.is_global_zero:
            return
        found = [{"step": step, **described(row, self.decode)} for row in self.rows]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in found)
        for logger in trainer.loggers:
            if hasattr(logger, "log_text") and hasattr(logger, "log_table"):
                data = [[str(record[key]) for key in TABLE] for record in found]
                logger.log_table("rollouts", columns=list(TABLE), data=data, step=step)


def described(row: Row, decode: Decode) -> dict[str, Any]:
    """``prompt`` and ``completion`` as text, ``stopped``, and where a teacher replaced tokens how many it did."""
    start = int(row.target_mask.nonzero()[0]) if bool(row.target_mask.any()) else len(row.input_ids)
    ids = row.input_ids.tolist()
    found: dict[str, Any] = {"prompt": decode(ids[:start]), "completion": decode(ids[start:]), "stopped": row.stopped}
    if row.replaced is not None:
        found["completion"] = "".join(_marked(ids[start:], row.replaced.tolist(), decode))
        found["replaced"] = int(row.replaced.sum())
    return found


def _marked(ids: list[int], replaced: list[bool], decode: Decode) -> Iterator[str]:
    end, before = 0, ""
    for theirs, run in groupby(replaced):
        end += len(list(run))
        # A character may be several tokens: only longer and longer beginnings are decoded.
        text = decode(ids[:end])
        new = text[len(before) :]
        yield f"{MARKS[0]}{new}{MARKS[1]}" if theirs else new
        before = text


def timed(rollout: Rollout, clock: Clock, written: Sequence[Rollouts]) -> Rollout:
    """A rollout whose seconds ``clock`` counts, which the watchdog knows, and whose rows ``written`` see."""

    def run(samples: list[Any], copies: list[int], step: int) -> list[Any]:
        began = time.perf_counter()
        with watchdog.phase("rollout", step + 1):
            rows = rollout(samples, copies, step)
        clock.add(time.perf_counter() - began)
        for callback in written:
            callback.see(rows)
        return rows

    return run
