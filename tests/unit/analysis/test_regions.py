"""Coordinate masks of a source and what of an update falls into them, against their definitions."""

import math

import pytest
import torch
from torch import Tensor

from distill.analysis.decompose import decompose
from distill.analysis.principal import SHARES, most_directions
from distill.analysis.regions import METRICS, MOVED_LABELS, coverage, regions


def codes(source: Tensor) -> Tensor:
    return regions(source, decompose(source, most_directions(min(source.shape))))


def masks(source: Tensor, share: str) -> dict[str, Tensor]:
    """The four masks by sorting, ties by position."""
    count, k = math.ceil(float(share) * source.numel()), max(1, int(float(share) * min(source.shape)))
    u, s, vt = torch.linalg.svd(source.double(), full_matrices=False)
    part = ((u[:, :k] * s[:k]) @ vt[:k]).abs().flatten()
    found = {"principal": torch.argsort(part, stable=True, descending=True)[:count]}
    found["low"] = torch.argsort(source.abs().flatten(), stable=True)[:count]
    is_in = {name: torch.zeros(source.numel(), dtype=torch.bool).index_fill(0, at, True) for name, at in found.items()}
    is_in["principal_not_low"] = is_in["principal"] & ~is_in["low"]
    is_in["not_principal_or_low"] = ~is_in["principal"] | is_in["low"]
    return is_in


@pytest.mark.parametrize("shape", [(30, 20), (20, 33), (1, 40), (5, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_coverage_and_enrichment_are_those_of_their_definitions(shape: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(shape, generator=generator).to(dtype).float()
    update = 3e-5 * torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) > 0.5)
    found = coverage(codes(source), update).metrics()
    for share in SHARES:
        for region, mask in masks(source, share).items():
            for label in MOVED_LABELS:
                moved = (update.abs() > float(label)).flatten()
                covered = int((mask & moved).sum()) / int(moved.sum())
                name = f"{region}_{share}_{label}"
                assert found[f"coverage_{name}"] == pytest.approx(covered)
                assert found[f"enrichment_{name}"] == pytest.approx(covered / float(mask.float().mean()))
    assert tuple(found) == METRICS


def test_counts_add_up_over_matrices() -> None:
    first, second = torch.randn(8, 6), torch.randn(9, 7)
    one, two = (coverage(codes(each), each * (each > 0)) for each in (first, second))
    whole = (one + two).metrics()
    moved = [int((each > 0).sum()) for each in (first, second)]
    parts = [each.metrics()["coverage_low_0.2_0"] * count for each, count in zip((one, two), moved, strict=True)]
    assert whole["coverage_low_0.2_0"] == pytest.approx(sum(parts) / sum(moved))


def test_the_low_masks_grow_with_their_share_and_are_exact_among_ties() -> None:
    source = torch.ones(10, 10)
    found = codes(source)
    sizes = [int((found >> bit & 1).sum()) for bit in range(2 * len(SHARES))]
    assert sizes == [1, 5, 10, 20, 1, 5, 10, 20]
    assert int((found.flatten()[0] >> len(SHARES)) & 1) == 1


def test_nothing_is_said_of_an_update_that_touches_nothing() -> None:
    assert coverage(codes(torch.randn(6, 6)), torch.zeros(6, 6)).metrics() == {}
    # Moved, but nowhere by more than 1e-5.
    assert not [
        name for name in coverage(codes(torch.randn(6, 6)), torch.full((6, 6), 1e-6)).metrics() if "1e-5" in name
    ]
