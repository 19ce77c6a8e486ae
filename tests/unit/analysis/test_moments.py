"""cos(g, m) and the spread of √v against their definitions."""

import pytest
import torch

from distill.analysis.moments import Moments, agreement, spread


def measure(g: torch.Tensor, m: torch.Tensor, v: torch.Tensor) -> Moments:
    return agreement(g, m) + spread(v)


def test_equals_the_definitions() -> None:
    g, m = torch.randn(3, 50_000, dtype=torch.float64)[:2].float()
    v = torch.rand(50_000) ** 4
    found = measure(g, m, v)
    assert found.cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(g, m, dim=0)), abs=1e-6)
    root = v.double().sqrt()
    assert found.variation == pytest.approx(float(root.std(correction=0) / root.mean()), rel=1e-9)


def test_sums_of_pieces_are_the_whole() -> None:
    g, m, v = torch.randn(1000), torch.randn(1000), torch.rand(1000)
    parts = measure(g[:300], m[:300], v[:300]) + measure(g[300:], m[300:], v[300:])
    whole = measure(g, m, v)
    assert parts.cosine == pytest.approx(whole.cosine, rel=1e-12)
    assert parts.variation == pytest.approx(whole.variation, rel=1e-12)


def test_a_scale_changes_nothing() -> None:
    g, m, v = torch.randn(100), torch.randn(100), torch.rand(100)
    whole, scaled = measure(g, m, v), measure(g / 8, 4 * m, v / 64)
    assert scaled.cosine == pytest.approx(whole.cosine)
    assert scaled.variation == pytest.approx(whole.variation)


def test_what_is_not_defined_is_none() -> None:
    g = torch.ones(4)
    assert Moments().cosine is None
    assert agreement(g, torch.zeros(4)).cosine is None
    assert agreement(g, g).variation is None
    assert spread(torch.zeros(4)).variation is None
    assert spread(torch.ones(4)).variation == 0
    assert agreement(g, -g).cosine == pytest.approx(-1)
