"""Checks of where examples come from: what each source needs, and a mixture of several."""

from __future__ import annotations

from collections.abc import Iterator

from distill.config import schema
from distill.config.checks_images import FILES, images
from distill.config.problem import Problem

SOURCE_KEYS = {
    "path": ("text", "image_folder", "image_dataset", "mask_folder", "mask_dataset", "fashion_mnist"),
    "eval_path": ("text", "image_folder", "image_dataset", "mask_folder", "mask_dataset"),
    "task": ("reasoning_gym",),
}
"""Keys of ``data`` that belong to some sources."""
REQUIRED = {"text": "path", "reasoning_gym": "task", **dict.fromkeys(FILES, "path")}
"""The key that a source cannot do without."""


def data(config: schema.Source, section: str = "data") -> Iterator[Problem]:
    kind = f"{section}.source"
    required = REQUIRED.get(config.source)
    if required is not None and getattr(config, required) is None:
        yield Problem((f"{section}.{required}", kind), None, f"given with {kind} {config.source!r}")
    for key, sources in SOURCE_KEYS.items():
        value = getattr(config, key)
        if config.source not in sources and value is not None:
            allowed = f"null unless {kind} is {sources[0]!r} (choose data={sources[0]})"
            yield Problem((f"{section}.{key}", kind), value, allowed)
    yield from images(config, section)
    if config.limit is not None and config.fraction != 1:
        allowed = f"null beside {section}.fraction: one says how many rows"
        yield Problem((f"{section}.limit", f"{section}.fraction"), config.limit, allowed)
    if config.too_long != "refuse" and config.source not in ("text", "mixture"):
        yield Problem((f"{section}.too_long", kind), config.too_long, f"'refuse' unless {kind} is 'text'")
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
