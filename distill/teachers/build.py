"""From the ``teacher`` section of a configuration to the teacher of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distill import components
from distill.teachers.base import Teacher
from distill.teachers.cached import CachedTeacher
from distill.teachers.cotrained import CotrainedTeacher
from distill.teachers.frozen import FrozenTeacher
from distill.teachers.multi import MultiTeacher
from distill.teachers.self_taught import SelfTeacher

Make = Callable[[dict[str, Any], str, int], Any]
"""A model of the run's task, from its section, the name of that, and what is added to the run's seed where it is drawn;
it is refused if it does not fit the student."""


def build(spec: dict[str, Any], student: Any, seed: int, make: Make) -> Teacher | None:
    """The teacher that ``spec`` (the fields of the schema's ``Teacher``) describes; None for the kind `none`.

    Raises:
        UserError: named under ``teacher``, for a model or cache that cannot be used, or of another tokenizer (of
            images: other classes) than the student's.
    """
    if spec["kind"] == "none":
        return None
    if spec["kind"] == "cached":
        return CachedTeacher(spec, student.tokenizer)
    if spec["kind"] == "self":
        return SelfTeacher(student)
    if spec["kind"] == "multi":
        return _multi(spec, make)
    if spec["kind"] == "cotrained":
        parts = {f"teacher.members.{name}": member for name, member in spec["members"].items()} or {"teacher": spec}
        # Networks of one configuration that began alike would stay alike.
        made = {key.rpartition(".")[2]: make(part, key, 1 + number) for number, (key, part) in enumerate(parts.items())}
        return CotrainedTeacher(made)
    if spec["kind"] == "custom":
        own: Teacher = components.make("teacher.custom", spec["custom"], student=student, seed=seed)
        return own
    return FrozenTeacher(make(spec, "teacher", 0), spec["placement"])


def _multi(spec: dict[str, Any], make: Make) -> MultiTeacher:
    made = {name: make(member, f"teacher.members.{name}", 0) for name, member in spec["members"].items()}
    members = {name: FrozenTeacher(lm) for name, lm in made.items()}
    weights = {name: member["weight"] for name, member in spec["members"].items()}
    return MultiTeacher(members, weights if spec["by"] is None else None)
