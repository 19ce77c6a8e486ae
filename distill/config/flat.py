"""A nested configuration as dotted keys with their values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def flat(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """``("a.b", value)`` for every leaf of nested dicts; lists and empty dicts are leaves.

    >>> dict(flat({"a": {"b": 1, "c": {}}}))
    {'a.b': 1, 'a.c': {}}
    """
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from flat(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node
