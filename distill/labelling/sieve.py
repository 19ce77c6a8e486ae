"""Which records make the file: the first of those that say the same, up to as many as are wanted; and the counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill import parts
from distill.data.arithmetic import Arithmetic
from distill.data.base import Dataset
from distill.data.mixture import Mixture
from distill.labelling.records import key


@dataclass
class Sieve:
    """Takes records in order. ``known``: what a prompt must not be, by its key, and why; None: prompts are given."""

    known: dict[bytes, str] | None = None
    wanted: int | None = None
    kept: int = 0
    drawn: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    seen: set[bytes] = field(default_factory=set)

    @property
    def full(self) -> bool:
        return self.wanted is not None and self.kept >= self.wanted

    def take(self, record: dict[str, Any]) -> bool:
        """Counts a record; whether it is kept."""
        self.drawn += 1
        self.counts["tokens_sampled"] += record["tokens"]
        reason = record["dropped"]
        if reason is None:
            found = key(record["row"], whole=self.known is None)
            reason = "duplicate" if found in self.seen else (self.known or {}).get(found)
            self.seen.add(found)
        if reason is not None:
            self.dropped[reason] += 1
            return False
        self.kept += 1
        self.counts["verified"] += record["verified"]
        self.counts["exact"] += record["exact"]
        return True


class Join:
    """The parts of ``out`` from the first on, as far as they are there without a gap, through a sieve."""

    def __init__(self, out: Path, count: int, sieve: Sieve) -> None:
        self.out, self.count, self.sieve = out, count, sieve
        self.next = 0

    def enough(self) -> bool:
        """Whether the parts that are there make the whole file."""
        for _ in self.rows():
            pass
        return self.sieve.full or self.next == self.count

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows that are kept, of the parts that have come since the last call."""
        while not self.sieve.full and self.next < self.count:
            records = parts.read(self.out, self.next)
            if records is None:
                return
            self.next += 1
            for record in records:
                if self.sieve.take(record):
                    yield record["row"]
                if self.sieve.full:
                    return


def sums_of(data: Dataset) -> tuple[Arithmetic, ...]:
    """The sums among the data, which can be solved and turned around."""
    if isinstance(data, Mixture):
        return tuple(sums for part in data.parts for sums in sums_of(part))
    return (data,) if isinstance(data, Arithmetic) else ()


def known_prompts(data: Dataset, held_out: Dataset) -> dict[bytes, str]:
    """Prompts that are there already; held-out sums in both orders of their operands."""
    found = {key(held_out.row(index), whole=False): "held_out" for index in range(len(held_out))}
    for sums in sums_of(held_out):
        for index in range(len(sums)):
            a, b = sums.operands(index)
            found[key({"prompt": sums.problem(b, a)}, whole=False)] = "held_out"
    for index in range(len(data)):
        found.setdefault(key(data.row(index), whole=False), "training")
    return found
