"""From the ``teacher`` section of a configuration to the teacher of a run."""

from __future__ import annotations

from typing import Any

from distill import models
from distill.teachers.base import Teacher
from distill.teachers.cached import CachedTeacher
from distill.teachers.frozen import FrozenTeacher


def build(spec: dict[str, Any], student: models.CausalLM, seed: int) -> Teacher | None:
    """The teacher that ``spec`` (the fields of the schema's ``Teacher``) describes; None for the kind `none`.

    Raises:
        UserError: named under ``teacher``, for a model or cache that cannot be used, or of another tokenizer than the
            student's.
    """
    if spec["kind"] == "none":
        return None
    if spec["kind"] == "cached":
        return CachedTeacher(spec, student)
    lm = models.build(spec, seed=seed, key="teacher")
    models.share_vocabulary(student, lm)
    return FrozenTeacher(lm, spec["placement"])
