"""A part of a dataset, for studies of how much data a method needs: smaller parts lie inside of larger ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from distill.data.base import Dataset, check_index
from distill.data.sampler import indices
from distill.errors import UserError
from distill.types import Sample

ORDER = 0
"""Seed of the one order that every part is a beginning of, so that runs of several seeds have the same rows (of
``reasoning_gym``, which makes its rows from the run's seed, the same places)."""


@dataclass(frozen=True)
class Subset:
    """``chosen`` samples of a dataset, in that order, with the ids they have there."""

    whole: Dataset
    chosen: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.whole.name

    @property
    def has_verifier(self) -> bool:
        return self.whole.has_verifier

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Sample:
        check_index(index, len(self.chosen))
        return self.whole[self.chosen[index]]

    def score(self, sample: Sample, completion: str) -> float:
        return self.whole.score(sample, completion)

    def row(self, index: int) -> dict[str, Any]:
        check_index(index, len(self.chosen))
        return self.whole.row(self.chosen[index])

    def describe(self) -> dict[str, Any]:
        part = f"{len(self.chosen)} of {len(self.whole)} rows (fixed order; smaller parts lie in larger ones)"
        return self.whole.describe() | {"rows": len(self.chosen), "part": part}

    def fingerprint(self) -> str:
        return self.whole.fingerprint()


def ids(dataset: Dataset) -> Sequence[int]:
    """The ids of all samples, in the order of the dataset, without making the samples."""
    return dataset.chosen if isinstance(dataset, Subset) else range(len(dataset))


def subset(dataset: Dataset, config: Mapping[str, Any]) -> Dataset:
    """What ``data.limit`` or ``data.fraction`` leaves of a training set; ceil(fraction·N) rows. All of it without them.

    Raises:
        UserError: ``data.limit`` is more than there is.
    """
    size = len(dataset)
    count = wanted(size, config)
    return dataset if count == size else Subset(dataset, tuple(indices(size, ORDER, 0, count)))


def wanted(size: int, config: Mapping[str, Any]) -> int:
    """How many of ``size`` training rows ``data.limit`` or ``data.fraction`` leave.

    Raises:
        UserError: ``data.limit`` is more than there is.
    """
    limit, fraction = config["limit"], config["fraction"]
    if limit is not None and limit > size:
        raise UserError("data.limit", limit, f"at most {size}, the number of training rows")
    # As it was written: 0.07 of 100 rows are 7, but the float is a little more.
    return int(limit) if limit is not None else math.ceil(Decimal(str(fraction)) * size)
