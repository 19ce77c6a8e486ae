"""The rules of masks: their definitions, exact counts, determinism and ties."""

import math
import zlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from distill.analysis import masks
from distill.analysis.nulls import rounding_null
from distill.analysis.sparsity import LABELS, TOLERANCES, compare

SHAPES = {"a": (48, 40), "b": (3, 4, 2, 5), "c": (37,), "d": (), "e": (0, 8)}


def normal(name: str, shape: tuple[int, ...], salt: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + salt)
    return torch.randn(shape, generator=generator)


WEIGHTS = {name: 0.02 * normal(name, shape) for name, shape in SHAPES.items()}
TRAINED = {name: weight + 3e-5 * normal(name, SHAPES[name], 1) for name, weight in WEIGHTS.items()}
SCORES: dict[str, Callable[[str], Tensor]] = {
    "random": lambda name: masks.random(name, SHAPES[name], 0),
    "low": lambda name: masks.low(WEIGHTS[name]),
    "principal": lambda name: masks.principal(masks.principal_part(WEIGHTS[name]), SHAPES[name]),
    "rounding_null": lambda name: masks.rounding_null(name, WEIGHTS[name], TRAINED[name], 0, 1e-5, "bf16"),
    "match": lambda name: masks.preferred(WEIGHTS[name] > 0.01, masks.random(name, SHAPES[name], 0)),
}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_updated_counts_what_sparsity_does_not(precision: str) -> None:
    for name, weight in WEIGHTS.items():
        for label, tolerance in zip(LABELS, TOLERANCES, strict=True):
            counts = compare(weight, TRAINED[name])[precision]
            found = masks.updated(weight, TRAINED[name], tolerance, precision)
            assert found.shape == weight.shape
            assert int(found.sum()) == counts.numel - counts.within[LABELS.index(label)]


def test_updated_rounds_and_subtracts_in_bf16() -> None:
    """1.001 rounds to 1.0 and 1.01 does not; zeros of both signs are equal; the tolerance itself is within it."""
    source = torch.tensor([1.0, 1.0, 0.0, -0.0, 0.5, 0.0, 0.0])
    tolerance = torch.tensor(1e-5)
    above = torch.nextafter(tolerance, torch.tensor(1.0))
    trained = torch.tensor([1.001, 1.01, -0.0, 2e-5, 0.5, tolerance, above])
    assert masks.updated(source, trained, 1e-5, "fp32").tolist() == [True, True, False, True, False, False, True]
    found = masks.updated(source, trained, 1e-5, "bf16")
    assert found[:5].tolist() == [False, True, False, True, False]
    assert torch.equal(found, (trained.bfloat16() - source.bfloat16()).abs().float() > tolerance)


@pytest.mark.parametrize("rule", SCORES)
@pytest.mark.parametrize("density", [0.001, 0.31, 1.0])
def test_exact_counts_per_tensor_and_in_all(rule: str, density: float) -> None:
    counts = {name: masks.count(density, math.prod(shape)) for name, shape in SHAPES.items()}
    for name, mask in masks.select(SCORES[rule], counts):
        assert mask.shape == SHAPES[name]
        assert int(mask.sum()) == counts[name] == math.ceil(density * mask.numel())
    total = masks.count(density, sum(math.prod(shape) for shape in SHAPES.values()))
    found = dict(masks.select_globally(SCORES[rule], SHAPES, total))
    assert {name: tuple(mask.shape) for name, mask in found.items()} == SHAPES
    assert sum(int(mask.sum()) for mask in found.values()) == total


def test_low_takes_the_smallest_and_ties_in_order() -> None:
    weight = torch.tensor([[0.5, -0.25, 0.25], [-0.0, 0.25, 0.0]])
    for count, taken in ((2, [3, 5]), (3, [1, 3, 5]), (4, [1, 2, 3, 5])):
        (_, mask), *_ = masks.select(lambda _: masks.low(weight), {"w": count})
        assert mask.reshape(-1).nonzero().reshape(-1).tolist() == taken


def test_low_over_the_whole_model_is_the_global_bottom() -> None:
    total = 700
    joined = torch.cat([weight.abs().reshape(-1) for weight in WEIGHTS.values()])
    expected = torch.zeros_like(joined, dtype=torch.bool)
    expected[torch.sort(joined, stable=True).indices[:total]] = True
    found = torch.cat([mask.reshape(-1) for _, mask in masks.select_globally(SCORES["low"], SHAPES, total)])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (5, 8), (12, 3, 2, 2)])
def test_principal_is_the_truncated_decomposition(shape: tuple[int, ...]) -> None:
    weight = normal("w", shape)
    matrix = weight.flatten(1).double()
    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    k = max(1, int(0.1 * min(matrix.shape)))
    expected = (left[:, :k] @ torch.diag(sizes[:k]) @ right[:k]).abs().reshape(shape)
    torch.testing.assert_close(
        masks.principal(masks.principal_part(weight), shape).double(), expected, rtol=1e-3, atol=1e-4
    )


def test_the_principal_part_of_a_vector_is_the_vector() -> None:
    for shape in ((7,), (), (0, 4), (0,)):
        weight = normal("v", shape)
        torch.testing.assert_close(masks.principal(masks.principal_part(weight), shape), weight.abs())


def test_random_is_a_function_of_seed_and_name() -> None:
    first = masks.random("a", (50, 20), 0)
    assert torch.equal(first, masks.random("a", (50, 20), 0))
    for other in (masks.random("a", (50, 20), 1), masks.random("b", (50, 20), 0)):
        assert not torch.equal(first, other)
    mask = next(masks.select(lambda _: first, {"a": 300}))[1]
    # Without structure: rows hold their share, give or take four standard deviations of 20 draws.
    assert mask.float().mean(1).sub(0.3).abs().max() < 4 * math.sqrt(0.3 * 0.7 / 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rounding_null_is_what_moves_in_the_null_of_sparsity(dtype: torch.dtype) -> None:
    source, trained = WEIGHTS["a"].to(dtype), TRAINED["a"].to(dtype)
    norm = math.sqrt(compare(source, trained)["fp32"].update_energy)
    null = rounding_null("a", source, norm, dtype, 5)["bf16"]
    moved = null.numel - null.within[LABELS.index("1e-5")]
    scores = masks.rounding_null("a", source, trained, 5, 1e-5, "bf16")
    # Moved coordinates score above zero, all others below.
    assert int((scores > 0).sum()) == moved
    assert 0 < moved < source.numel()
    assert torch.equal(scores, masks.rounding_null("a", source, trained, 5, 1e-5, "bf16"))
    assert not torch.equal(scores, masks.rounding_null("a", source, trained, 6, 1e-5, "bf16"))


def test_the_null_of_a_tensor_that_stood_still_is_ordered_by_noise() -> None:
    scores = masks.rounding_null("a", WEIGHTS["a"], WEIGHTS["a"], 0, 1e-5, "bf16")
    assert bool((scores < 0).all())
    assert scores.unique().numel() > 0.99 * scores.numel()


def test_preferred_come_first_and_scores_order_both() -> None:
    scores = torch.tensor([0.0, 1e-45, 0.3, 0.30000001, 7.0, 0.2, 0.0])
    members = torch.tensor([True, False, False, True, False, True, False])
    order = torch.sort(masks.preferred(members, scores), descending=True, stable=True).indices.tolist()
    assert order == [3, 5, 0, 4, 2, 1, 6]


def test_the_number_of_threads_changes_nothing() -> None:
    threads = torch.get_num_threads()

    def found() -> Tensor:
        scores = ("random", "low", "rounding_null", "match")
        return torch.stack([mask for rule in scores for _, mask in masks.select(SCORES[rule], {"a": 500})])

    expected = found()
    try:
        torch.set_num_threads(3)
        assert torch.equal(found(), expected)
    finally:
        torch.set_num_threads(threads)


def test_overlap_adds_up() -> None:
    first, second = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    one = masks.overlap(first, second)
    assert one == masks.Overlap(4, 2, 2, 1, 1.0)
    assert one + masks.overlap(first, first) + masks.overlap(first[:0], first[:0]) == masks.Overlap(8, 4, 4, 3, 2.0)


@pytest.mark.parametrize(
    ("density", "expected"), [(0.07, 7), (0.28, 28), (0.55, 55), (0.29, 29), (0.001, 1), (1.0, 100)]
)
def test_a_density_is_the_number_that_was_written(density: float, expected: int) -> None:
    assert masks.count(density, 100) == expected
