"""Numbers that change over a run: plain ones, and schedules, as pure functions of the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

Given = float | Mapping[str, Any]
"""A number, or the fields of ``config.schema.Schedule``."""
SCHEDULED = (("rollout", "on_policy_fraction"), ("rollout", "temperature"), ("objective", "temperature"))
"""Keys that take a schedule."""
Curve = Callable[[int], float]
"""From an optimizer step (0 is the first) to a value: the same on every rank, and after every interruption."""


def value(given: Given, max_steps: int, step: int) -> float:
    """The value that optimizer step ``step`` takes: ``start`` at the first of ``steps`` (None: of all ``max_steps``),
    ``end`` at the last of them and ever after; on a straight line, or on half a cosine between them.

    >>> [value({"start": 1.0, "end": 0.0, "steps": 5, "shape": "linear"}, 100, step) for step in range(6)]
    [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    if not isinstance(given, Mapping):
        return given
    start, end, last = given["start"], given["end"], (given["steps"] or max_steps) - 1
    if step >= last:
        return float(end)
    progress = step / last
    if given["shape"] == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return float(start + (end - start) * progress)


def curve(given: Given, max_steps: int) -> Curve:
    """:func:`value` as a function of the step alone."""
    return partial(value, given, max_steps)


def of_run(config: Mapping[str, Any]) -> dict[str, Curve]:
    """The keys of a run's configuration that have a schedule, each with its curve."""
    steps = config["trainer"]["max_steps"]
    given = {f"{section}.{key}": config[section][key] for section, key in SCHEDULED}
    return {key: curve(found, steps) for key, found in given.items() if isinstance(found, dict)}


def lowest(given: Given) -> float:
    """The least value of a run."""
    return min(given["start"], given["end"]) if isinstance(given, Mapping) else given


def highest(given: Given) -> float:
    """The greatest value of a run."""
    return max(given["start"], given["end"]) if isinstance(given, Mapping) else given


def mean(given: Given, max_steps: int) -> float:
    """The mean over the steps of a run."""
    if not isinstance(given, Mapping):
        return given
    return sum(value(given, max_steps, step) for step in range(max_steps)) / max_steps
