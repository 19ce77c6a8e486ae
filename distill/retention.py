"""Which checkpoints of a run are kept: the newest k, the best k by a metric, and milestones. A pure function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Retention:
    """A checkpoint stays when any of the rules wants it (the schema's ``CheckpointCallback`` has the same keys).

    Attributes:
        keep_last: the newest so many, at least 1.
        keep_best: so many with the best value of ``monitor``.
        monitor: the metric's key; None without ``keep_best``.
        mode: whether ``monitor`` is better when it is smaller or larger.
        keep_every_n_steps: milestones, every checkpoint whose step is a multiple; None for no milestones.
    """

    keep_last: int
    keep_best: int = 0
    monitor: str | None = None
    mode: Literal["min", "max"] = "max"
    keep_every_n_steps: int | None = None


@dataclass(frozen=True)
class Candidate:
    """A checkpoint as the rules see it. ``value`` is the monitored metric of that very step, None if not measured."""

    step: int
    value: float | None = None
    intact: bool = True


def doomed(candidates: Sequence[Candidate], rules: Retention) -> list[int]:
    """Steps of the checkpoints to delete, oldest first.

    The newest always stays, so does every damaged one: it takes nobody's place, and a person has to look at it. Of
    equally good ones the later is better. NaN and infinity are no values.
    """
    intact = sorted((c for c in candidates if c.intact), key=lambda c: c.step)
    kept = {c.step for c in intact[-max(rules.keep_last, 1) :]}
    kept |= {step for step, _ in ranking(intact, rules)[: rules.keep_best]}
    if rules.keep_every_n_steps is not None:
        kept |= {c.step for c in intact if c.step % rules.keep_every_n_steps == 0}
    newest = max((c.step for c in candidates), default=None)
    return [c.step for c in intact if c.step not in kept and c.step != newest]


def ranking(candidates: Sequence[Candidate], rules: Retention) -> list[tuple[int, float]]:
    """Step and value of the candidates that have one, the best first."""
    sign = 1 if rules.mode == "min" else -1
    measured = [(c.step, c.value) for c in candidates if c.value is not None and math.isfinite(c.value)]
    return sorted(measured, key=lambda pair: (sign * pair[1], -pair[0]))
