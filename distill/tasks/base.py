"""What every task offers: the places in which a run of language differs from one of images, and no others.

Module, loop, checkpoints, strategies, analysis and reports know none of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from distill.data.base import Examples
from distill.data.window import Collate, RolloutFunction
from distill.models.base import Network
from distill.teachers.base import Teacher


class Result(Protocol):
    """What an evaluation returns."""

    @property
    def samples(self) -> Sequence[dict[str, Any]]: ...

    def metrics(self) -> dict[str, float]: ...


class Task(Protocol):
    """``config`` is a whole configuration of ``distill train``, or those of its sections that are named."""

    def build(self, spec: dict[str, Any], *, seed: int, key: str, source: Mapping[str, Any] | None) -> Network:
        """The model of a section ``student`` or ``teacher``; ``source`` is the section ``data`` that it has to fit,
        None for a model that fits itself. Raises UserError named under ``key``."""
        ...

    def teacher(self, config: Mapping[str, Any], student: Any) -> Teacher | None:
        """From ``teacher``, ``data`` and ``seed``. Raises UserError for one that does not fit the student."""
        ...

    def data(self, config: Mapping[str, Any], student: Any, teacher: Teacher | None) -> tuple[Examples, Examples]:
        """Training and held-out examples. Raises UserError for whatever the user can mend."""
        ...

    def held_out(self, config: Mapping[str, Any], student: Any, teacher: Teacher | None) -> Examples:
        """The held-out examples alone, from ``data``, ``teacher``, ``rollout`` and ``seed``."""
        ...

    def rows(self, config: Mapping[str, Any]) -> RolloutFunction:
        """The rollout of kind `dataset`: rows are the data's own."""
        ...

    def collate(self, student: Any) -> Collate: ...

    def evaluate(self, student: Any, teacher: Teacher | None, held_out: Any, **options: Any) -> Result:
        """A collective; ``options`` are those of ``evaluation.evaluate``."""
        ...

    def measure(
        self, student: Any, teacher: Teacher | None, held_out: Any, identical: bool, options: dict[str, Any]
    ) -> dict[str, float]:
        """What is measured once, before the first step. A collective."""
        ...

    def check_readable(self, config: dict[str, Any]) -> None:
        """Looks for all that a run reads, weights left where they are. Raises UserError."""
        ...
