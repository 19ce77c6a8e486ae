"""The keys of ``distill plan``: those of ``distill train``, and the machine it is planned for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from distill.config import checks
from distill.config.checks_images import text_alone
from distill.config.problem import Problem
from distill.config.rundir import unusable
from distill.config.schema import TrainConfig
from distill.config.strict import Positive, Strict

UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B")
SMALLEST = 64 << 20


def size_in_bytes(text: str) -> int:
    """``80GiB`` → bytes.

    Raises:
        ValueError: it is no size, or no machine has so little.
    """
    found = SIZE.fullmatch(text)
    size = int(float(found[1]) * (1024 if found[3] else 1000) ** UNITS[found[2]]) if found else 0
    if size < SMALLEST:
        raise ValueError(f"should be a size of at least {SMALLEST >> 20}MiB, such as 80GiB")
    return size


def _checked(text: str | None) -> str | None:
    if text is not None:
        size_in_bytes(text)
    return text


def _as_text(value: Any) -> Any:
    return f"{value}B" if isinstance(value, int) and not isinstance(value, bool) else value


Size = Annotated[str | None, BeforeValidator(_as_text), AfterValidator(_checked)]


class Machine(Strict):
    """Where the run would be; null is this machine, or what the launcher's variables say."""

    devices: Annotated[int, Field(gt=0, le=2**20)] | None = Field(None, description="ranks of the whole run")
    devices_per_node: Positive | None = Field(
        None, description="ranks that share one machine's memory; null: all of them"
    )
    device_memory: Size = Field(None, description="of one GPU, or of one CPU machine, such as 80GiB")
    host_memory: Size = Field(None, description="of one machine, beside its GPUs")
    gpu: bool | None = Field(None, description="plan for GPUs; null: as trainer.accelerator says")
    out: str | None = Field(None, description="a JSON file for the plan")


class PlanConfig(TrainConfig):
    """``distill plan``: takes the configuration of ``distill train``."""

    plan: Machine = Machine()


def check(config: PlanConfig) -> Iterator[Problem]:
    """What makes no sense wherever the run is launched, and on the ranks it is planned for."""
    yield from text_alone(config, "plan")
    ranks, per_node = config.plan.devices or 1, config.plan.devices_per_node
    yield from checks.run(config, lambda one: _on(one, ranks))
    if per_node is not None and ranks % per_node:
        yield Problem(("plan.devices_per_node", "plan.devices"), per_node, f"a divisor of plan.devices ({ranks})")
    out = config.plan.out
    if out is not None and (reason := "a folder" if Path(out).is_dir() else unusable(Path(out).parent)):
        yield Problem(("plan.out",), out, f"a file that can be written ({reason})")


def _on(config: TrainConfig, ranks: int) -> Iterator[Problem]:
    """One run, or stage of it, on so many ranks."""
    strategy = config.trainer.strategy
    if strategy == "single" and ranks > 1:
        allowed = "'ddp' or 'zero…' with several devices (choose trainer=ddp, zero2 or zero3)"
        yield Problem(("trainer.strategy", "plan.devices"), strategy, allowed)
    if config.data.batch_size % ranks:
        allowed = f"a multiple of plan.devices ({ranks})"
        yield Problem(("data.batch_size", "plan.devices"), config.data.batch_size, allowed)
