"""What every dataset offers, whatever its source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from distill.types import Sample


class Examples(Protocol):
    """What training needs of a dataset, whatever its samples are; their ``id`` is their index in the whole."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def describe(self) -> dict[str, Any]:
        """Where the samples come from, as plain values for the run's record."""
        ...


class Dataset(Protocol):
    """A sized, deterministic sequence of samples whose ``id`` is their index (in the whole, if this is a part).

    ``score`` judges the decoded text of a completion: 1.0 is correct, 0.0 is not. It means something only where
    ``has_verifier`` is true, that is where every sample has an answer to check against.
    """

    @property
    def name(self) -> str: ...

    @property
    def has_verifier(self) -> bool: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def score(self, sample: Sample, completion: str) -> float: ...

    def row(self, index: int) -> dict[str, Any]:
        """The sample as a row of a file for the source ``text``, complete without ``data.chat_template`` and
        ``data.system_prompt``: `prompt` and `completion`, or `messages`; and `answer`, as far as they are known."""
        ...

    def describe(self) -> dict[str, Any]:
        """Where the samples come from, as plain values for the run's record."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 (hex) of what the samples are made from, wherever that is stored; of the whole, if this is a part."""
        ...


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_index(index: int, size: int) -> None:
    """Raises IndexError outside ``0 <= index < size``, so that plain iteration ends."""
    if not 0 <= index < size:
        raise IndexError(f"index {index} is outside a dataset of {size}")
