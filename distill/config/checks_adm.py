"""Checks of adm: whose features there are, and under what they can be compared."""

from __future__ import annotations

from collections.abc import Iterator

from distill.config import checks_images, schema
from distill.config.checks_online import KIND
from distill.config.problem import Problem

SECTION = "adm"
WHY = f"with {SECTION}"


def adm(config: schema.TrainConfig) -> Iterator[Problem]:
    part, strategy, maps = config.adm, config.trainer.strategy, config.callbacks.feature_maps
    drawn = part is not None and config.task.name in checks_images.SOURCES
    if maps is not None and not drawn:
        allowed = f"null without {SECTION} and task.name {' or '.join(map(repr, checks_images.SOURCES))}"
        yield Problem(("callbacks.feature_maps", SECTION, "task.name"), maps.model_dump(), allowed)
    if part is None:
        return
    kind, rollout = config.teacher.kind, config.rollout.kind
    if kind not in ("frozen", KIND):
        yield Problem(
            ("teacher.kind", SECTION), kind, f"'frozen' or {KIND!r} {WHY}: a model whose features can be read"
        )
    if kind == KIND and len(config.teacher.members) > 1:
        allowed = f"one network at most {WHY}, which is of a student and a teacher"
        yield Problem(("teacher.members", SECTION), sorted(config.teacher.members), allowed)
    if kind == "frozen" and part.divergence > 0:
        allowed = f"0 unless teacher.kind is {KIND!r}: a frozen teacher goes nowhere"
        yield Problem((f"{SECTION}.divergence", "teacher.kind"), part.divergence, allowed)
    if rollout == "speculative":
        allowed = f"another {WHY}: the teacher's features of a rollout are gone when the student is trained"
        yield Problem(("rollout.kind", SECTION), rollout, allowed)
    if config.variance_reduction is not None:
        yield Problem((SECTION, "variance_reduction"), part.model_dump(), "null with variance_reduction")
    if part.consensus == part.divergence == 0 and maps is None:
        allowed = f"above 0 unless {SECTION}.divergence is, or callbacks.feature_maps draws what it sees"
        yield Problem((f"{SECTION}.consensus", f"{SECTION}.divergence"), 0.0, allowed)
    if part.description == "classes" and config.task.name != checks_images.TASK:
        allowed = f"'relations' or 'channels' unless task.name is {checks_images.TASK!r}"
        yield Problem((f"{SECTION}.description", "task.name"), part.description, allowed)
    if part.description == "classes" and strategy == "zero3":
        allowed = "'relations' or 'channels' with trainer.strategy 'zero3', which has the head's weights in parts"
        yield Problem((f"{SECTION}.description", "trainer.strategy"), part.description, allowed)
