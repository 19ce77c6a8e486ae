"""The keys of ``distill cache``: those of ``distill train``, and what is kept of the teacher's answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from distill.config import checks
from distill.config.checks_images import text_alone
from distill.config.problem import Problem
from distill.config.rundir import unusable
from distill.config.schema import TrainConfig
from distill.config.schema_schedule import Schedule
from distill.config.strict import Filled, Positive, Strict


class Cache(Strict):
    """What is written, and where. ``out`` is also where an interrupted command goes on."""

    out: Filled = "runs/cache"
    k: Positive | None = Field(None, description="likeliest tokens kept at each position; null: objective.k")
    draws: int = Field(0, ge=0, description="tokens drawn from the others, in place of their mass as one number")
    states: bool = Field(False, description="keep the teacher's hidden states instead: the whole distribution")
    stored: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="dtype of the log-probabilities or states in the files"
    )
    shard_rows: Positive = Field(1024, description="samples per file: what a killed command may have to do again")
    batch_size: Positive = Field(32, description="samples in one pass of the teacher")
    parquet: bool = Field(False, description="write the same as Parquet, too, for other programs")


class CacheConfig(TrainConfig):
    """``distill cache``: takes the configuration of the run that will use the cache, with a live teacher."""

    cache: Cache = Cache()


def check(config: CacheConfig) -> Iterator[Problem]:
    """The run is possible, its teacher is live, whole and asked about the data, and what is kept makes sense."""
    yield from text_alone(config, "cache")
    yield from checks.run(config)
    if config.stages is not None:
        yield Problem(
            ("stages",), list(config.stages), "null: a cache is of one run's data, so make one for each stage"
        )
    part, teacher = config.cache, config.teacher
    if teacher.kind != "frozen":
        yield Problem(("teacher.kind",), teacher.kind, "'frozen': a cache keeps what a model says that never changes")
    if teacher.placement != "replicated":
        yield Problem(("teacher.placement",), teacher.placement, "'replicated' while a cache is written")
    if config.rollout.kind != "dataset":
        allowed = "'dataset': a cache is of the completions of the data (choose rollout=dataset)"
        yield Problem(("rollout.kind",), config.rollout.kind, allowed)
    if isinstance(config.objective.temperature, Schedule) and not part.states:
        allowed = "a number: what is cached is at one temperature (cache.states serve any)"
        yield Problem(("objective.temperature", "cache.states"), config.objective.temperature.model_dump(), allowed)
    temperature = config.objective.temperature
    if not part.states and not isinstance(temperature, float):
        allowed = "one number, which the cached logits are divided by (or cache.states=true, which serves any)"
        yield Problem(("objective.temperature",), temperature.model_dump(), allowed)
    if part.states and part.k is not None:
        yield Problem(("cache.k", "cache.states"), part.k, "null with cache.states, which keep the whole distribution")
    if part.states and part.draws:
        yield Problem(("cache.draws", "cache.states"), part.draws, "0 with cache.states, which keep all tokens")
    if part.states and part.parquet:
        yield Problem(("cache.parquet", "cache.states"), True, "false with cache.states")
    if reason := f"{part.out} is a file" if Path(part.out).is_file() else unusable(Path(part.out)):
        yield Problem(("cache.out",), part.out, f"a folder to write into ({reason})")
