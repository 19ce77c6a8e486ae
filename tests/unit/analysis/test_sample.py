"""Which matrices are drawn, and which count for a headline."""

from collections import Counter

from distill.analysis.naming import place
from distill.analysis.sample import headline, sampled
from distill.analysis.source import natural

KINDS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj")
NAMES = [f"model.layers.{layer}.{kind}.weight" for layer in range(12) for kind in KINDS]
ALL = ["model.embed_tokens.weight", *NAMES, "lm_head.weight"]


def test_kinds_are_drawn_evenly_and_embeddings_are_not() -> None:
    for count in (4, 8, 10):
        drawn = sampled(ALL, count, seed=0)
        assert len(set(drawn)) == count
        numbers = Counter(place(name).module for name in drawn)
        assert max(numbers.values()) - min(numbers.values()) <= 1
        assert set(drawn) <= set(NAMES)


def test_a_function_of_the_seed_and_not_of_the_order() -> None:
    assert sampled(ALL, 6, 1) == sampled(reversed(ALL), 6, 1)
    assert len({tuple(sampled(ALL, 6, seed)) for seed in range(5)}) == 5
    assert set(sampled(ALL, 4, 1)) < set(sampled(ALL, 12, 1))


def test_more_than_there_are_is_all_of_them_in_order() -> None:
    assert sampled(NAMES, 1000, 0) == sorted(NAMES, key=natural)
    assert sampled(["b.weight", "a.weight"], 5, 0) == ["a.weight", "b.weight"]


def test_small_matrices_count_only_where_there_are_no_others() -> None:
    small, large = {"a": (255, 4096), "b": (3, 5)}, {"c": (256, 256)}
    assert headline({**small, **large}) == ["c"]
    assert headline(small) == ["a", "b"]
