"""The schema of ``distill select``, and its check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from distill.config import checks_data, checks_teacher
from distill.config.problem import Problem
from distill.config.schema import Data, Model, Teacher
from distill.config.schema_label import folder, live_teacher
from distill.config.strict import Filled, Positive, Strict

FREE = ("out", "keep")
"""Keys that may change when the command goes on: scores do not depend on them."""


class SelectConfig(Strict):
    """``distill select``: the rows of the data that a teacher knows better than a reference model does."""

    seed: int = Field(0, ge=0, lt=2**31)
    data: Data = Data()
    teacher: Teacher = Teacher()
    reference: Model = Model()
    keep: float = Field(0.5, gt=0, le=1, description="share of the rows, those of the highest scores")
    batch_size: Positive = Field(32, description="rows in one pass of a model")
    part_rows: Positive = Field(1024, description="rows scored between two writes: what a kill costs at most")
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    out: Filled = Field(description="a folder: new, or where this command goes on")


def check(config: SelectConfig) -> Iterator[Problem]:
    """There are two different models, and ``out`` can be written."""
    yield from checks_data.data(config.data)
    yield from live_teacher(config.teacher)
    yield from checks_teacher.model("reference", config.reference)
    yield from folder(config.out)
    one, other = config.teacher, config.reference
    if one.path is not None and (one.path, one.revision) == (other.path, other.revision):
        allowed = "another model than teacher.path: a score is the difference of their losses"
        keys = ("reference.path", "reference.revision", "teacher.path", "teacher.revision")
        yield Problem(keys, other.path, allowed)
