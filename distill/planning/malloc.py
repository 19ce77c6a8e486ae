"""How glibc turns allocations into resident memory: a model of its `malloc`, as PyTorch's CPU tensors use it.

Large blocks are mapped and given back when freed. Smaller ones live in one heap, where freed space is used again but
given back only from the top, so a process keeps more memory than its tensors have at any moment. The border between
both is dynamic: it rises to the size of the largest mapped block freed so far, up to 32 MiB.
Source: glibc's `malloc/malloc.c` (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD) and `man 3 mallopt`. Sizes are bytes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

PAGE = 4096
THRESHOLD = 128 << 10
LARGEST_THRESHOLD = 32 << 20
HEADER = 16
SMALL = 1040
LEAD = 48
"""Tensors are aligned to 64 bytes: malloc takes a larger block and frees what lies before and behind the tensor."""
LOST_LEADS = 6
"""One in so many of these leads is taken by a small object before its tensor is freed, and the hole is too small for
the next tensor of that size. Measured: 1 in 6 gives the resident memory of runs after several steps."""


@dataclass
class Heap:
    """Addresses count from 0; what is free is kept in two indices, by address and by (size, address)."""

    threshold: int = THRESHOLD
    trim: int = THRESHOLD
    top: int = 0
    mapped: int = 0
    committed: int = 0
    _aligned: int = 0
    _used: dict[int, tuple[int, int]] = field(default_factory=dict)
    _starts: dict[int, int] = field(default_factory=dict)
    _ends: dict[int, int] = field(default_factory=dict)
    _sizes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def resident(self) -> int:
        return self.committed + self.mapped

    def allocate(self, key: int, size: int) -> None:
        """``key`` names the block when it is freed."""
        size = -(-(size + HEADER) // HEADER) * HEADER
        lead = LEAD if size > SMALL else 0
        needed = size + 2 * lead
        if needed >= self.threshold:
            pages = -(-needed // PAGE) * PAGE
            self.mapped += pages
            self._used[key] = (-1, pages)
            return
        place = bisect_left(self._sizes, (needed, -1))
        if place < len(self._sizes):
            # The smallest hole that is large enough; what is left of it stays a hole.
            found, start = self._sizes[place]
            self._take(start, found)
        else:
            found, start, self.top = needed, self.top, self.top + needed
            self.committed = max(self.committed, self.top)
        self._aligned += lead > 0
        if lead and self._aligned % LOST_LEADS:
            self._give(start, lead)
        if found > lead + size:
            self._give(start + lead + size, found - lead - size)
        self._used[key] = (start + lead, size)

    def free(self, key: int) -> None:
        start, size = self._used.pop(key)
        if start < 0:
            self.mapped -= size
            if self.threshold < size <= LARGEST_THRESHOLD:
                self.threshold, self.trim = size, 2 * size
            return
        while start + size in self._starts:
            following = self._starts[start + size]
            self._take(start + size, following)
            size += following
        while start in self._ends:
            before = self._ends[start]
            self._take(before, start - before)
            start, size = before, size + start - before
        if start + size < self.top:
            self._give(start, size)
            return
        self.top = start
        if self.committed - self.top > self.trim:
            self.committed = self.top

    def _take(self, start: int, size: int) -> None:
        del self._starts[start], self._ends[start + size]
        self._sizes.pop(bisect_left(self._sizes, (size, start)))

    def _give(self, start: int, size: int) -> None:
        self._starts[start] = size
        self._ends[start + size] = start
        insort(self._sizes, (size, start))
