"""Where the sequences of an optimizer step come from: the dataset, the student itself, or a mixture of both."""

from __future__ import annotations

from typing import Protocol

from distill.types import Row, Sample


class Rollout(Protocol):
    """Turns samples, and the copy number of each, into rows to train on at one optimizer step.

    ``on_policy`` tells whether the rows of the latest call were sampled from the student.
    """

    on_policy: bool

    def __call__(self, samples: list[Sample], copies: list[int], step: int) -> list[Row]: ...
