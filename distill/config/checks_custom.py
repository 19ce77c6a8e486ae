"""Checks of a user's own rollout, teacher and divergence: each is named where it is chosen, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator

from distill.config import schema
from distill.config.problem import Problem

CHOICES = {"rollout": "kind", "teacher": "kind", "objective": "divergence"}
"""The sections that take one, and the key that says so."""


def custom(config: schema.TrainConfig) -> Iterator[Problem]:
    for section, choice in CHOICES.items():
        part = getattr(config, section)
        key, chosen = f"{section}.{choice}", getattr(part, choice)
        if chosen == "custom" and part.custom is None:
            allowed = f"given as {{_target_: module.Name, …}} with {key} 'custom' (docs/extending.md)"
            yield Problem((f"{section}.custom", key), None, allowed)
        if chosen != "custom" and part.custom is not None:
            allowed = f"null unless {key} is 'custom'"
            yield Problem((f"{section}.custom", key), part.custom.model_dump(by_alias=True), allowed)
