"""What a check of a configuration finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """``keys``: every key the judgement rests on, the one to change first. ``value`` is that key's."""

    keys: tuple[str, ...]
    value: Any
    allowed: str
