"""Several datasets as one: every stretch of its sample stream has rows of each, in a fixed proportion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distill.data import subset
from distill.data.base import Dataset, Examples, check_index, digest
from distill.data.sampler import indices
from distill.types import Sample


@dataclass(frozen=True)
class Mixture:
    """The parts one after the other, by index; drawn from by ``weights`` (whole numbers above 0), by :meth:`order`.

    Sample ``i`` of part ``p`` of ``P`` has the id ``i·P + p``: ids of different parts differ, however large the parts
    are, and each tells which part judges its completion.
    """

    names: tuple[str, ...]
    parts: tuple[Dataset, ...]
    weights: tuple[int, ...]
    name: str = "mixture"

    @property
    def has_verifier(self) -> bool:
        return all(part.has_verifier for part in self.parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: int) -> Sample:
        which, own = self._locate(index)
        sample = self.parts[which][own]
        return replace(sample, id=sample.id * len(self.parts) + which)

    def row(self, index: int) -> dict[str, Any]:
        which, own = self._locate(index)
        return self.parts[which].row(own)

    def _locate(self, index: int) -> tuple[int, int]:
        """The part of a sample, and its index there."""
        check_index(index, len(self))
        for which, part in enumerate(self.parts):
            if index < len(part):
                return which, index
            index -= len(part)
        raise AssertionError("the index is below the sum of the sizes")

    def score(self, sample: Sample, completion: str) -> float:
        own, which = divmod(sample.id, len(self.parts))
        return self.parts[which].score(replace(sample, id=own), completion)

    def describe(self) -> dict[str, Any]:
        shares = (round(weight / sum(self.weights), 4) for weight in self.weights)
        parts = zip(self.names, shares, self.parts, strict=True)
        found = {name: {"share": share, **part.describe()} for name, share, part in parts}
        return {"source": "mixture", "rows": len(self), "parts": found}

    def fingerprint(self) -> str:
        return digest({"parts": [part.fingerprint() for part in self.parts]})

    def order(self, seed: int, start: int, count: int) -> list[int]:
        """Entries ``[start, start + count)`` of an endless stream of indices: of the first ``n`` entries, the share of
        each part's weight is that part's, to within one entry of two parts. Each part goes on where it was, through
        permutations of its own; the first part's are those it would have alone.
        """
        first = [0]
        for part in self.parts:
            first.append(first[-1] + len(part))
        before, after = self._drawn(start), self._drawn(start + count)
        streams = [
            # Parts of one size would be gone through in one order.
            iter(indices(len(part), seed + (which << 32), before[which], after[which] - before[which]))
            for which, part in enumerate(self.parts)
        ]
        return [first[which] + next(streams[which]) for which in self._turns(start, count)]

    def _turns(self, start: int, count: int) -> Iterator[int]:
        """The part of each entry."""
        drawn = self._drawn(start)
        for position in range(start, start + count):
            following = self._drawn(position + 1)
            yield next(which for which, (a, b) in enumerate(zip(drawn, following, strict=True)) if a < b)
            drawn = following

    def _drawn(self, count: int) -> list[int]:
        """How many of the first ``count`` entries are of each part: the rounded share, then likewise of the rest.

        From one count to the next exactly one of them grows, by one.
        """
        found, total = [], sum(self.weights)
        for weight in self.weights[:-1]:
            found.append(count * weight // total)
            count, total = count - found[-1], total - weight
        return [*found, count]


def ids(dataset: Dataset) -> Sequence[int]:
    """The ids of all samples of any dataset, in its order, without making the samples."""
    if not isinstance(dataset, Mixture):
        return subset.ids(dataset)
    count = len(dataset.parts)
    return [own * count + which for which, part in enumerate(dataset.parts) for own in ids(part)]


def order(dataset: Examples, seed: int, start: int, count: int) -> list[int]:
    """Entries ``[start, start + count)`` of the sample stream of any dataset, as indices into it."""
    if isinstance(dataset, Mixture):
        return dataset.order(seed, start, count)
    return indices(len(dataset), seed, start, count)
