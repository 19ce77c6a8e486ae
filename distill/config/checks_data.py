"""Checks of where examples come from: what each source needs, and a mixture of several."""

from __future__ import annotations

from collections.abc import Iterator

from distill.config import schema
from distill.config.problem import Problem

SOURCE_KEYS = {"text": ("path", "eval_path"), "reasoning_gym": ("task",)}
"""Keys of ``data`` that belong to one source; the first is required by it."""


def data(config: schema.Source, section: str = "data") -> Iterator[Problem]:
    kind = f"{section}.source"
    for source, (required, *others) in SOURCE_KEYS.items():
        if config.source == source and getattr(config, required) is None:
            yield Problem((f"{section}.{required}", kind), None, f"given with {kind} {source!r}")
        for key in (required, *others):
            value = getattr(config, key)
            if config.source != source and value is not None:
                allowed = f"null unless {kind} is {source!r} (choose data={source})"
                yield Problem((f"{section}.{key}", kind), value, allowed)
    if config.limit is not None and config.fraction != 1:
        allowed = f"null beside {section}.fraction: one says how many rows"
        yield Problem((f"{section}.limit", f"{section}.fraction"), config.limit, allowed)
    if config.options and config.source != "reasoning_gym":
        yield Problem((f"{section}.options", kind), config.options, f"empty unless {kind} is 'reasoning_gym'")
    if isinstance(config, schema.Data):
        yield from mixture(config, section)


def mixture(config: schema.Data, section: str) -> Iterator[Problem]:
    kind, mixed = f"{section}.source", config.source == "mixture"
    if mixed != bool(config.parts):
        allowed = "NAME: {source: …, weight: …} for each part, with" if mixed else "empty unless it is 'mixture', with"
        yield Problem((f"{section}.parts", kind), list(config.parts), f"{allowed} {kind} {config.source!r}")
    if mixed and (config.limit is not None or config.fraction != 1):
        value = config.fraction if config.limit is None else config.limit
        key = f"{section}.{'fraction' if config.limit is None else 'limit'}"
        yield Problem((key, kind), value, f"left out with {kind} 'mixture': each part has its own")
    for name, part in config.parts.items():
        yield from data(part, f"{section}.parts.{name}")
        if part.source == "mixture":
            yield Problem((f"{section}.parts.{name}.source",), part.source, "a source that is no mixture itself")
