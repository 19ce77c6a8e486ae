"""The schema of ``distill export``, and its check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from distill.config.problem import Problem
from distill.config.rundir import unusable
from distill.config.strict import Strict


class ExportConfig(Strict):
    """``distill export``: a Hugging Face folder from a checkpoint of any strategy."""

    checkpoint: str = Field(description="a run directory (its latest checkpoint) or one of its checkpoints/step-…")
    network: str = Field("student", description="or one that was trained with it: teacher, or its name")
    out: str = Field(description="the folder to make; one that is there must be empty")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(None, description="null: that of the masters")


def check(config: ExportConfig) -> Iterator[Problem]:
    """The folder ``out`` can be written, and nothing is lost by it."""
    out = Path(config.out)
    reason = unusable(out)
    if reason is None and out.is_dir() and any(out.iterdir()):
        reason = "there are files in it"
    if reason is not None:
        yield Problem(("out",), config.out, f"a new or empty folder ({reason})")
