"""The schema of ``distill analyze``, and its check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from distill.config.problem import Problem
from distill.config.rundir import unusable
from distill.config.strict import Filled, Positive, Strict


class AnalyzeConfig(Strict):
    """``distill analyze``: what changed between two Hugging Face checkpoints."""

    source: Filled = Field(description="checkpoint before training: a folder with safetensors, or one such file")
    trained: Filled = Field(description="checkpoint after it")
    other: Filled | None = Field(None, description="checkpoint of another run from that source, to compare what moved")
    out: Filled = Field(description="folder for tables, plots and report.html")
    seed: int = Field(0, ge=0, lt=2**31, description="of the null's random updates")
    null_draws: int = Field(3, ge=0, description="random updates of the same norm, for every number's null; 0: no null")
    spectral: bool = Field(True, description="also spectra, subspaces and coordinate masks of matrices")
    max_exact_dim: Positive = Field(8192, description="smaller side above which a decomposition is randomised")


def check(config: AnalyzeConfig) -> Iterator[Problem]:
    """The folder ``out`` can be written to."""
    if reason := unusable(Path(config.out)):
        yield Problem(("out",), config.out, f"a folder to write into ({reason})")
