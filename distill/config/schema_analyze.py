"""The schema of ``distill analyze``, and its check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from distill.config.checks import Problem
from distill.config.rundir import unusable
from distill.config.strict import Strict


class AnalyzeConfig(Strict):
    """``distill analyze``: what changed between two Hugging Face checkpoints."""

    source: str = Field(description="folder of the weights before training")
    trained: str = Field(description="folder of the weights after it")
    out: str = Field(description="folder for summary.json, tensors.csv and groups.csv")
    seed: int = Field(0, ge=0, lt=2**31, description="of the rounding null's random updates")


def check(config: AnalyzeConfig) -> Iterator[Problem]:
    """The folder ``out`` can be written to."""
    if reason := unusable(Path(config.out)):
        yield Problem(("out",), config.out, f"a folder to write into ({reason})")
