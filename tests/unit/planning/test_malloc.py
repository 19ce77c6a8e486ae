"""The model of glibc's allocator."""

from __future__ import annotations

import pytest

from distill.planning import malloc
from distill.planning.malloc import LARGEST_THRESHOLD, PAGE, THRESHOLD, Heap

MIB = 1 << 20


def test_a_large_block_is_given_back() -> None:
    heap = Heap()
    heap.allocate(1, 100 * MIB)
    assert 100 * MIB <= heap.resident <= 100 * MIB + PAGE
    heap.free(1)
    assert heap.resident == 0
    assert heap.threshold == THRESHOLD, "a block above 32 MiB does not move the border"


def test_freed_blocks_of_one_size_are_kept_from_the_second_time_on() -> None:
    heap = Heap()
    heap.allocate(1, 10 * MIB)
    heap.free(1)
    assert 10 * MIB < heap.threshold <= LARGEST_THRESHOLD
    heap.allocate(2, 10 * MIB)
    heap.allocate(3, 1024)
    heap.free(2)
    assert heap.resident > 10 * MIB, "below the top, which the small block holds"
    assert heap.mapped == 0


def test_a_hole_is_used_again() -> None:
    heap = Heap()
    for key in range(3):
        heap.allocate(key, 64 * 1024)
    before = heap.resident
    heap.free(1)
    heap.allocate(4, 32 * 1024)
    assert heap.resident == before


def test_neighbours_merge_and_the_top_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(malloc, "LOST_LEADS", 1000)
    heap = Heap()
    for key in range(8):
        heap.allocate(key, 100 * 1024)
    for key in (1, 3, 2, 5, 4, 0, 6):
        heap.free(key)
    assert heap.resident > 700 * 1024
    heap.free(7)
    assert heap.resident < 100 * 1024


def test_what_is_not_there_cannot_be_freed() -> None:
    with pytest.raises(KeyError):
        Heap().free(1)


def test_some_holes_are_lost_for_the_next_tensor_of_their_size() -> None:
    heap = Heap()
    for step in range(40):
        heap.allocate(step, 100 * 1024)
        heap.allocate(1000 + step, 512)
        heap.free(step)
    assert 200 * 1024 < heap.resident < 10 * 110 * 1024, "more than one tensor, fewer than all"
