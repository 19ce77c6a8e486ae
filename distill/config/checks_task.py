"""Which tasks a recipe is for: what a rollout, a teacher or a method takes for granted."""

from __future__ import annotations

from collections.abc import Iterator

from distill.config import schema
from distill.config.problem import Problem

TEXTS, CLASSES = "causal_lm", "image_classification"
READERS = ("cached", "self")
"""Teachers that know texts alone."""


def suited(config: schema.TrainConfig) -> Iterator[Problem]:
    """The parts of a recipe that the task has no meaning for."""
    task, kind, teacher = config.task.name, config.rollout.kind, config.teacher.kind
    if kind != "dataset" and task != TEXTS:
        yield Problem(("task.name", "rollout.kind"), task, f"{TEXTS!r} with rollout.kind {kind!r}, which generates")
    if teacher in READERS and task != TEXTS:
        yield Problem(("task.name", "teacher.kind"), task, f"{TEXTS!r} with teacher.kind {teacher!r}")
    adapters = [config.teacher.lora, *(member.lora for member in config.teacher.members.values())]
    if teacher == "cotrained" and any(adapters) and task != TEXTS:
        yield Problem(("task.name", "teacher.lora"), task, f"{TEXTS!r} with teacher.lora, which is of language models")
    if config.variance_reduction is not None and task != CLASSES:
        yield Problem(("task.name", "variance_reduction"), task, f"{CLASSES!r} with variance_reduction")
