"""The teacher of a planned run, made of models without weights."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from distill.models.causal_lm import CausalLM
from distill.planning import skeleton
from distill.planning.workload import Workload
from distill.schedule import lowest
from distill.teachers.base import Teacher
from distill.teachers.frozen import FrozenTeacher
from distill.teachers.multi import MultiTeacher
from distill.teachers.self_taught import SelfTeacher


def parts(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The models that the section ``teacher`` of a configuration has beside the student, by key."""
    if spec["kind"] in ("multi", "cotrained") and spec["members"]:
        return {f"teacher.members.{name}": member for name, member in spec["members"].items()}
    return {"teacher": spec} if spec["kind"] in ("frozen", "cotrained") else {}


def width(lm: CausalLM) -> int:
    """Of the states that its head takes, which some project to another width before it (OPT-350m)."""
    return lm.vocab_size if lm.backbone is None else int(lm.head_parameters[0].shape[-1])


def dtype(lm: CausalLM) -> torch.dtype:
    return next(lm.model.parameters()).dtype


def asked_again(config: dict[str, Any]) -> bool:
    """Whether some steps ask the teacher about their rows after a rollout: not those of a speculative one, whose rows
    bring the teacher's states along."""
    rollout = config["rollout"]
    return rollout["kind"] != "speculative" or lowest(rollout["on_policy_fraction"]) < 1


def waiting(config: dict[str, Any], work: Workload, beside: list[CausalLM]) -> int:
    """Bytes of the teacher's states that wait in CPU memory, on one rank, for their micro-batch."""
    if config["rollout"]["kind"] != "speculative":
        return 0
    return work.rows * work.completion * width(beside[0]) * dtype(beside[0]).itemsize


def build(
    spec: dict[str, Any], words: Any, student: CausalLM, mode: FakeTensorMode
) -> tuple[Teacher | None, list[CausalLM]]:
    """What a step asks, and the models it has beside the student.

    Where rows name their teacher, the largest one is asked about all of them.
    """
    models = [skeleton.build(part, words, key, mode) for key, part in parts(spec).items()]
    if spec["kind"] == "self":
        return SelfTeacher(student), models
    if not models:
        return None, models
    frozen = [FrozenTeacher(lm) for lm in models]
    if spec["members"] and spec["by"] is None:
        weights = [member["weight"] for member in spec["members"].values()]
        return MultiTeacher(*(dict(zip(spec["members"], each, strict=True)) for each in (frozen, weights))), models
    return max(frozen, key=lambda teacher: sum(p.nbytes for p in teacher.lm.model.parameters())), models
