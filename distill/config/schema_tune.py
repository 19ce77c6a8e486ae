"""The typed schema of ``distill tune``, and what its keys must satisfy together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from distill.config.problem import Problem
from distill.config.strict import Positive, Strict

Scalar = bool | int | float | str | None


class Range(Strict):
    """Numbers from ``low`` to ``high``, both included; whole numbers if both are."""

    low: int | float
    high: int | float
    log: bool = Field(False, description="sampled uniformly in the logarithm")
    step: int | float | None = Field(None, gt=0)


class TuneConfig(Strict):
    """``distill tune``: a search over keys of ``distill train``. All other words of its command line are overrides."""

    space: dict[str, Range | list[Scalar]] = Field(
        description="keys of train, each with a list of values or {low: …, high: …, log: …, step: …}"
    )
    metric: str = Field("eval/accuracy", description="a key of metrics.jsonl; its last value is what a trial is worth")
    direction: Literal["maximize", "minimize"] = "maximize"
    trials: Positive = Field(20, description="of the whole study, those of earlier attempts included")
    sampler_seed: int = Field(0, ge=0, lt=2**31)
    resume: Literal["auto"] | None = Field(None, description="auto goes on with the study in hydra.run.dir")
    overrides: list[str] = Field([], description="of distill train, for every trial; taken from the command line")
    config_dir: str | None = Field(None, description="a folder with more groups (--config-dir)")


def check(config: TuneConfig) -> Iterator[Problem]:
    """All checks of ``distill tune`` that need no configuration of train."""
    if not config.space:
        yield Problem(("space",), config.space, "at least one key with its values (space={optimizer.lr: [1e-4, 1e-3]})")
    for key, values in config.space.items():
        where = (f"space.{key}", "space")
        if isinstance(values, list):
            if not values:
                yield Problem(where, values, "a list of at least one value")
        elif values.low >= values.high:
            yield Problem(where, values.low, f"a range whose low is below its high ({values.high})")
        elif values.log and values.low <= 0:
            yield Problem(where, values.low, "a range above 0 with log")
        elif values.log and values.step is not None:
            yield Problem(where, values.step, "a range with log or with step, not both")
