"""A rollout that is another one at every optimizer step: with the temperature that a schedule has for it."""

from __future__ import annotations

from collections.abc import Callable

from distill.rollouts import Rollout
from distill.types import Row, Sample


class ScheduledRollout:
    """Calls ``make(temperature(step))``; what it makes has to be cheap, and keep nothing from step to step."""

    def __init__(self, make: Callable[[float], Rollout], temperature: Callable[[int], float]) -> None:
        self.make, self.temperature = make, temperature
        self.on_policy = make(temperature(0)).on_policy

    def __call__(self, samples: list[Sample], copies: list[int], step: int) -> list[Row]:
        return self.make(self.temperature(step))(samples, copies, step)
