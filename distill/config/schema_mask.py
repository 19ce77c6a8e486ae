"""The schema of ``distill mask``, and its checks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from distill.config.problem import Problem
from distill.config.rundir import unusable
from distill.config.strict import Filled, Strict

_CONTROL = ("source", "density", "scope")
USES = {
    "updated": ("source", "trained", "tolerance", "precision"),
    "random": (*_CONTROL, "seed"),
    "low": _CONTROL,
    "principal": _CONTROL,
    "rounding_null": (*_CONTROL, "trained", "tolerance", "precision", "seed"),
    "match": ("masks", "density", "scope", "seed"),
    "union": ("masks",),
    "intersection": ("masks",),
}
"""The keys each rule reads, beside ``like`` and ``out``. What has ``density`` takes exactly so many coordinates."""


class MaskConfig(Strict):
    """``distill mask``: which coordinates of a model an update touched, or a control of the same density."""

    rule: Literal["updated", "random", "low", "principal", "rounding_null", "match", "union", "intersection"] = (
        "updated"
    )
    source: Filled | None = Field(None, description="folder of the weights before training")
    trained: Filled | None = Field(None, description="folder of the weights after it")
    masks: list[Filled] = Field([], description="mask files: one for match, several for union and intersection")
    like: Filled | None = Field(None, description="a mask file: its densities are matched, the overlap is shown")
    density: float | None = Field(None, gt=0, le=1, description="share of the coordinates, unless like gives it")
    scope: Literal["tensor", "global"] = Field("tensor", description="the density is that of each tensor, or of all")
    tolerance: float = Field(1e-5, ge=0, description="a coordinate has moved if |Δ| is larger")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="in which Δ is taken")
    seed: int = Field(0, ge=0, lt=2**31, description="of random, rounding_null and match")
    out: Filled = Field(description="the mask file to write; must not exist")


def check(config: MaskConfig) -> Iterator[Problem]:
    """Every key that is given is read by the rule, every key the rule needs is given, and ``out`` is a new file."""
    uses = USES[config.rule]
    for key, field in MaskConfig.model_fields.items():
        value = getattr(config, key)
        if key in ("rule", "like", "out"):
            continue
        if key not in uses and value != field.default:
            yield Problem((key, "rule"), value, f"left out with rule={config.rule}, which does not read it")
        if key in uses and key in ("source", "trained") and value is None:
            yield Problem((key, "rule"), None, f"given with rule={config.rule} ({field.description})")
    yield from _masks(config)
    if "density" in uses and (config.density is None) == (config.like is None):
        allowed = "null beside `like`" if config.like else f"given with rule={config.rule}, unless `like` is"
        yield Problem(("density", "like", "rule"), config.density, f"{allowed}: one says how many coordinates to take")
    out = Path(config.out)
    if reason := "it is there already" if out.exists() else unusable(out.parent):
        yield Problem(("out",), config.out, f"a new file ({reason})")


def _masks(config: MaskConfig) -> Iterator[Problem]:
    wanted = {"match": "one mask file", "union": "at least two mask files", "intersection": "at least two mask files"}
    right = len(config.masks) == 1 if config.rule == "match" else len(config.masks) > 1
    if config.rule in wanted and not right:
        yield Problem(("masks", "rule"), config.masks, f"a list of {wanted[config.rule]} with rule={config.rule}")
