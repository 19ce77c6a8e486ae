"""The allow-list of ``_target_``: what a configuration may import.

Hydra instantiates any import path it is given, ``torch.load`` and ``os.system`` included; a configuration is data, and
may come from somebody else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from distill.errors import UserError

ALLOWED = (
    *("distill.callbacks.", "distill.losses.", "distill.rollouts.", "distill.teachers."),
    "lightning.pytorch.callbacks.",
)
HYDRA_ALLOWED = ("hydra._internal.core_plugins.", "hydra_plugins.")
"""What Hydra's own node may name: its launchers and sweepers."""

VARIABLE = "DISTILL_ALLOWED_TARGETS"


def allowed() -> tuple[str, ...]:
    """Prefixes of import paths that are allowed, with those in the environment (comma separated)."""
    extra = (prefix.strip() for prefix in os.environ.get(VARIABLE, "").split(","))
    return (*ALLOWED, *(prefix for prefix in extra if prefix))


def refused(config: Any, prefixes: tuple[str, ...], key: str = "") -> Iterator[UserError]:
    """One error per ``_target_`` anywhere in nested dicts and lists that starts with none of ``prefixes``."""
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(config, dict):
        items = iter(config.items())
    elif isinstance(config, list):
        items = iter(enumerate(config))
    for name, value in items:
        path = f"{key}.{name}" if key else str(name)
        if name == "_target_" and not (isinstance(value, str) and value.startswith(prefixes)):
            hint = "" if prefixes == HYDRA_ALLOWED else f" ({VARIABLE} adds prefixes)"
            yield UserError(path, value, f"one of {', '.join(f'{prefix}*' for prefix in prefixes)}{hint}")
        else:
            yield from refused(value, prefixes, path)
