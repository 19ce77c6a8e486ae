"""From the ``teacher`` section of a configuration to the teacher of a run."""

from __future__ import annotations

from typing import Any

from distill import components, models
from distill.teachers.base import Teacher
from distill.teachers.cached import CachedTeacher
from distill.teachers.frozen import FrozenTeacher
from distill.teachers.multi import MultiTeacher
from distill.teachers.self_taught import SelfTeacher


def build(spec: dict[str, Any], student: models.CausalLM, seed: int) -> Teacher | None:
    """The teacher that ``spec`` (the fields of the schema's ``Teacher``) describes; None for the kind `none`.

    Raises:
        UserError: named under ``teacher``, for a model or cache that cannot be used, or of another tokenizer than the
            student's.
    """
    if spec["kind"] == "none":
        return None
    if spec["kind"] == "cached":
        return CachedTeacher(spec, student.tokenizer)
    if spec["kind"] == "self":
        return SelfTeacher(student)
    if spec["kind"] == "multi":
        return _multi(spec, student, seed)
    if spec["kind"] == "custom":
        made: Teacher = components.make("teacher.custom", spec["custom"], student=student, seed=seed)
        return made
    lm = models.build(spec, seed=seed, key="teacher")
    models.share_vocabulary(student, lm)
    return FrozenTeacher(lm, spec["placement"])


def _multi(spec: dict[str, Any], student: models.CausalLM, seed: int) -> MultiTeacher:
    members = {}
    for name, member in spec["members"].items():
        lm = models.build(member, seed=seed, key=f"teacher.members.{name}")
        models.share_vocabulary(student, lm, key=f"teacher.members.{name}")
        members[name] = FrozenTeacher(lm)
    weights = {name: member["weight"] for name, member in spec["members"].items()}
    return MultiTeacher(members, weights if spec["by"] is None else None)
