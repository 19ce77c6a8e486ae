"""Advice, sizes as text, and the room that a model leaves for new tokens."""

from __future__ import annotations

import pytest

from distill.planning import advice, table, workload
from tests import tiny


@pytest.mark.parametrize(
    ("term", "strategy", "ranks", "named"),
    [
        ("gradients", "ddp", 8, "trainer=zero2"),
        ("gradients", "zero2", 8, None),
        ("gradients", "zero3", 8, None),
        ("optimizer state", "zero3", 8, None),
        ("student weights", "zero2", 8, "trainer=zero3"),
        ("student weights", "single", 1, None),
        ("teacher", "zero2", 8, "placement=sharded"),
        ("teacher", "zero2", 1, None),
        ("communication buffers", "zero3", 8, None),
    ],
)
def test_sharding_is_named_where_it_is_more_than_is_chosen(
    term: str, strategy: str, ranks: int, named: str | None
) -> None:
    said = advice.remedy(term, ranks, tiny.config("opd", trainer__strategy=strategy))
    assert (named or "") in said
    assert ("shard" in said or "trainer=zero" in said) == (named is not None)


def test_sizes_below_a_gibibyte_are_mebibytes() -> None:
    assert table._line("a", 3 << 19).endswith(" 1.5 MiB")
    assert table._line("a", 3 << 29).endswith(" 1.500 GiB")


@pytest.mark.parametrize(("prompt", "positions", "left"), [(10, None, 32), (10, 64, 32), (50, 64, 14), (63, 64, 1)])
def test_new_tokens_end_with_the_models_positions(prompt: int, positions: int | None, left: int) -> None:
    assert workload.room(prompt, 32, positions) == left
