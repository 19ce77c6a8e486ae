"""Checks of where a step's sequences come from: what a kind of rollout reads, needs, and cannot be combined with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from distill.config import schema
from distill.config.problem import Problem
from distill.config.schema_schedule import Schedule

SAMPLED = ("samples_per_prompt", "on_policy_fraction")
SPECULATIVE = ("draft_length", "accept_top_k", "teacher_temperature", "teacher_top_p")
"""Keys of ``rollout`` that mean nothing without samples, and without speculation."""


def rollout(config: schema.TrainConfig) -> Iterator[Problem]:
    part, kind = config.rollout, "rollout.kind"
    yield from _unread(part)
    if config.teacher.kind == "cached" and part.kind != "dataset":
        allowed = "'dataset' with teacher.kind 'cached': a cache knows the completions of the data alone"
        yield Problem((kind, "teacher.kind"), part.kind, allowed)
    if part.kind == "dataset":
        return
    if lowest(part.temperature) == 0 and part.samples_per_prompt > 1:
        allowed = "above 0 when rollout.samples_per_prompt is above 1: greedy samples are all equal"
        yield Problem(("rollout.temperature", "rollout.samples_per_prompt", kind), shown(part.temperature), allowed)
    if part.kind == "on_policy" and config.objective.label_weight > 0 and lowest(part.on_policy_fraction) == 1:
        allowed = "0 when every rollout is the student's own: it would learn to repeat itself (see rollout=dataset)"
        keys = ("objective.label_weight", "rollout.on_policy_fraction", kind)
        yield Problem(keys, config.objective.label_weight, allowed)
    if part.kind == "speculative" and config.teacher.kind != "frozen":
        allowed = "'frozen' with rollout.kind 'speculative', whose tokens a teacher checks (choose teacher=frozen)"
        yield Problem(("teacher.kind", kind), config.teacher.kind, allowed)
    if part.kind == "speculative" and config.teacher.placement != "replicated":
        allowed = "'replicated' with rollout.kind 'speculative', which asks the teacher while it generates"
        yield Problem(("teacher.placement", kind), config.teacher.placement, allowed)


def _unread(part: schema.Rollout) -> Iterator[Problem]:
    """Keys that have a value, though a rollout of this kind does not read them."""
    unread = {"dataset": (*SAMPLED, *SPECULATIVE), "on_policy": SPECULATIVE, "speculative": (), "custom": ()}[part.kind]
    for name in unread:
        value, default = getattr(part, name), schema.Rollout.model_fields[name].default
        if value != default:
            other = "on_policy" if name in SAMPLED else "speculative"
            allowed = f"{default} with rollout.kind {part.kind!r} (choose rollout={other})"
            yield Problem((f"rollout.{name}", "rollout.kind"), shown(value), allowed)


def scheduled(config: schema.TrainConfig) -> Iterator[Problem]:
    """Schedules that nothing would read."""
    kind = config.rollout.kind
    if kind in ("dataset", "custom") and isinstance(config.rollout.temperature, Schedule):
        why = (
            "samples nothing (choose rollout=on_policy)" if kind == "dataset" else "is made once, with one temperature"
        )
        allowed = f"a number with rollout.kind {kind!r}, which {why}"
        yield Problem(("rollout.temperature", "rollout.kind"), shown(config.rollout.temperature), allowed)
    if config.objective.logit_weight == 0 and isinstance(config.objective.temperature, Schedule):
        allowed = "a number when objective.logit_weight is 0: it is of the divergence alone"
        keys = ("objective.temperature", "objective.logit_weight")
        yield Problem(keys, shown(config.objective.temperature), allowed)


def lowest(given: float | Schedule) -> float:
    """The least value that a number, or a schedule, has in a run."""
    return min(given.start, given.end) if isinstance(given, Schedule) else given


def shown(given: Any) -> Any:
    """A schedule as it is written in a configuration."""
    return given.model_dump() if isinstance(given, Schedule) else given


def sampled_token(config: schema.TrainConfig) -> Iterator[Problem]:
    part = config.rollout
    if config.objective.divergence != "sampled_token" or config.objective.logit_weight == 0:
        return
    keys, why = ("objective.divergence", "objective.logit_weight"), "with 'sampled_token', which needs samples"
    if part.kind != "on_policy":
        yield Problem(("rollout.kind", *keys), part.kind, f"'on_policy' {why} of the student")
    elif lowest(part.on_policy_fraction) < 1:
        fraction = shown(part.on_policy_fraction)
        yield Problem(("rollout.on_policy_fraction", "rollout.kind", *keys), fraction, f"1.0 {why} only")
    elif lowest(part.temperature) == 0:
        yield Problem(
            ("rollout.temperature", "rollout.kind", *keys), shown(part.temperature), f"above 0 {why}, not greedy text"
        )


def batch(config: schema.TrainConfig) -> Iterator[Problem]:
    size, copies = config.data.batch_size, config.rollout.samples_per_prompt
    if size % copies:
        allowed = f"a multiple of rollout.samples_per_prompt ({copies})"
        yield Problem(("data.batch_size", "rollout.samples_per_prompt"), size, allowed)
