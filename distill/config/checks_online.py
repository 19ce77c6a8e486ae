"""Checks of online distillation: what it takes, and what it cannot be combined with."""

from __future__ import annotations

import re
from collections.abc import Iterator

from distill.config import schema
from distill.config.checks_images import SOURCES
from distill.config.problem import Problem

SECTION, KIND = "online", "cotrained"
WHY = f"with teacher.kind {KIND!r}"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
OFF = ("extrapolation", "gradient_variance", "update_mask", "gradient_subspace", "optimizer_state")
"""Callbacks that know one network alone."""


def online(config: schema.TrainConfig) -> Iterator[Problem]:
    kind, part = config.teacher.kind, config.online
    if (kind == KIND) != (part is not None):
        if kind == KIND:
            yield Problem((SECTION, "teacher.kind"), None, f"given {WHY} (choose recipe=online_kd)")
        else:
            allowed = f"{KIND!r} with the section `{SECTION}` (choose recipe=online_kd, or online=null)"
            yield Problem(("teacher.kind", SECTION), kind, allowed)
        return
    if part is None:
        return
    for key, value, holds, allowed in (*_learned(config), *_trained(config)):
        if not holds:
            yield Problem((key, "teacher.kind"), value, f"{allowed} {WHY}")
    weights = {
        key: getattr(config.objective if getattr(part, key) is None else part, key)
        for key in ("label_weight", "logit_weight")
    }
    if not any(weights.values()):
        allowed = f"above 0 when {SECTION}.logit_weight is 0, {WHY}: the networks would learn nothing"
        yield Problem((f"{SECTION}.label_weight", f"{SECTION}.logit_weight"), weights["label_weight"], allowed)
    if part.method == "switokd" and len(config.teacher.members) > 1:
        allowed = "empty with online.method 'switokd', which is of a student and one teacher (teacher.path)"
        yield Problem(("teacher.members", "online.method"), sorted(config.teacher.members), allowed)
    if part.method != "kdcl" and part.ensemble != "mean":
        yield Problem(("online.ensemble", "online.method"), part.ensemble, "'mean' unless online.method is 'kdcl'")
    if part.frozen_batch_norm is not None and config.task.name not in SOURCES:
        allowed = f"null unless task.name is {' or '.join(map(repr, SOURCES))}"
        yield Problem(("online.frozen_batch_norm", "task.name"), part.frozen_batch_norm, allowed)
    for name in config.teacher.members:
        if not NAME.fullmatch(name) or name == "student":
            allowed = "names of letters, digits, _ and - (they name folders), none of them 'student'"
            yield Problem(("teacher.members",), name, allowed)


def _learned(config: schema.TrainConfig) -> Iterator[tuple[str, object, bool, str]]:
    """Key, its value, whether that is possible, what is: of what is learned from whom."""
    teacher, part, rollout = config.teacher, config.objective, config.rollout.kind
    yield "teacher.prompt", teacher.prompt, teacher.prompt is None, "null"
    yield "teacher.by", teacher.by, teacher.by is None, "null"
    for name, member in teacher.members.items():
        yield f"teacher.members.{name}.weight", member.weight, member.weight == 1, "1: every network counts alike"
    yield "rollout.kind", rollout, rollout == "dataset", "'dataset' (all networks learn the data's own targets)"
    usual = part.divergence == "forward_kl"
    yield "objective.divergence", part.divergence, usual, "'forward_kl' (KL of what others say to what one says)"


def _trained(config: schema.TrainConfig) -> Iterator[tuple[str, object, bool, str]]:
    """Likewise, of how it is trained."""
    reduced = config.variance_reduction
    yield "variance_reduction", reduced and reduced.model_dump(), reduced is None, "null"
    for name in OFF:
        found = getattr(config.callbacks, name)
        yield f"callbacks.{name}", found and found.model_dump(), found is None, "null (it knows the student alone)"


def cotrained(config: schema.TrainConfig) -> Iterator[Problem]:
    """Of a stage: it begins with the student of the one before, and nothing says with which teacher."""
    if config.teacher.kind == KIND:
        allowed = "another kind in a run of stages, which hands over the student alone"
        yield Problem(("teacher.kind", "stages"), KIND, allowed)
