"""Errors reported in one line: a user's mistake, and a run that cannot go on."""

from __future__ import annotations

from typing import Any


class UserError(ValueError):
    """A mistake in the configuration or the input, reported without a traceback (exit status 2).

    >>> str(UserError("data.path", "/x", "an existing file or folder"))
    "`data.path` must be an existing file or folder, but is '/x'."
    """

    def __init__(self, key: str, value: Any, allowed: str) -> None:
        self.key, self.value, self.allowed = key, value, allowed
        super().__init__(f"`{key}` must be {allowed}, but is {value!r}.")


class RunError(RuntimeError):
    """A run that cannot go on (diverged, disk full), reported without a traceback (exit status 1)."""
