"""Every measure of one matrix against its definition, written out with full decompositions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distill.analysis.matrix import DIRECTIONS, METRICS, Sources, measure
from distill.analysis.nulls import random_update

SHARES = ("0.01", "0.05", "0.1", "0.2")


def pair(m: int = 60, n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    source = 0.05 * torch.randn(m, n, generator=generator)
    low = torch.randn(m, 3, generator=generator) @ torch.randn(3, n, generator=generator)
    return source, source + 1e-3 * low + 1e-4 * torch.randn(m, n, generator=generator)


def by_hand(source: Tensor, trained: Tensor, dtype: torch.dtype) -> dict[str, float]:
    before, after = source.to(dtype), trained.to(dtype)
    update = (after - before).double()
    before, after = before.double(), after.double()
    values = torch.linalg.svdvals(update)
    square, small = values.square(), min(source.shape)
    share = values / values.sum()
    found = {f"rank_{t}": float((values > float(t) * values[0]).sum()) / small for t in ("1e-6", "1e-5", "1e-4")}
    found["stable_rank"] = float(square.sum() / square[0])
    found["entropy_rank"] = math.exp(-float(torch.special.xlogy(share, share).sum()))
    found |= {f"spectral_energy_{k}": float(square[:k].sum() / square.sum()) for k in (1, 2, 4, 8, 16, 32, 64)}
    u, s, v = torch.linalg.svd(before, full_matrices=False)
    u2, s2, v2 = torch.linalg.svd(after, full_matrices=False)
    for label in SHARES:
        k = max(1, int(float(label) * small))
        parts = {"joint": u[:, :k].T @ update @ v[:k].T, "left": u[:, :k].T @ update, "right": update @ v[:k].T}
        for side, part in parts.items():
            found[f"projection_{side}_{label}"] = float(part.square().sum() / update.square().sum())
        for side, cosines in (("left", u[:, :k].T @ u2[:, :k]), ("right", v[:k] @ v2[:k].T)):
            angles = torch.linalg.svdvals(cosines).clamp(max=1)
            found[f"rotation_{side}_{label}"] = float((1 - angles.square()).sqrt().mean())
    drift = (s2 - s).norm()
    found["spectral_drift"] = float(drift / s.norm())
    found["spectral_drift_per_update"] = float(drift / update.norm())
    return found


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_equals_the_definitions(shape: tuple[int, int], precision: str) -> None:
    source, trained = pair(*shape)
    rows, _ = measure("w", source, trained, Sources(), seed=0)
    expected = by_hand(source, trained, torch.bfloat16 if precision == "bf16" else torch.float32)
    assert set(expected) == set(METRICS)
    for metric, value in expected.items():
        assert rows[precision][metric] == pytest.approx(value, rel=1e-3, abs=1e-5), metric


def test_the_null_is_the_same_of_a_random_update_of_this_norm() -> None:
    source, trained = pair()
    rows, _ = measure("w", source, trained, Sources(), seed=5)
    norm = float((trained - source).double().norm())
    _, moved = random_update("w", source, norm, torch.float32, 5)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        expected = by_hand(source, moved, dtype)
        for metric, value in expected.items():
            assert rows[precision][f"null_{metric}"] == pytest.approx(value, rel=1e-3, abs=1e-5), metric
    assert rows["fp32"]["stable_rank"] < rows["fp32"]["null_stable_rank"]


def test_directions_are_the_right_singular_vectors_of_the_update() -> None:
    source, trained = pair()
    _, directions = measure("w", source, trained, Sources(), seed=0)
    assert directions is not None
    assert directions.shape == (40, DIRECTIONS)
    top = torch.linalg.svd((trained - source).double(), full_matrices=False)[2][:3]
    torch.testing.assert_close((directions[:, :3].T.double() @ top.T).abs(), torch.eye(3).double(), atol=1e-3, rtol=0)


def test_without_an_update_there_is_nothing_to_say() -> None:
    source, _ = pair()
    rows, directions = measure("w", source, source.clone(), Sources(), seed=0)
    assert directions is None
    assert rows["bf16"].get("stable_rank") is None
    assert rows["bf16"]["spectral_drift"] == pytest.approx(0, abs=1e-6)


def test_a_source_is_decomposed_once_within_its_bound() -> None:
    source, trained = pair()
    cache = Sources()
    first = measure("w", source, trained, cache, seed=0)
    held = cache.held_bytes
    assert held > 0
    again = measure("w", source, trained, cache, seed=0)
    assert cache.held_bytes == held
    assert first[0] == again[0]
    without = Sources(limit=0)
    assert measure("w", source, trained, without, seed=0)[0] == first[0]
    assert without.held_bytes == 0
