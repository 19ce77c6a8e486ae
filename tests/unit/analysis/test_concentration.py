"""Energy in the largest coordinates against sorting."""

import math

import pytest
import torch
from torch import Tensor

from distill.analysis.concentration import FRACTIONS, Magnitudes, magnitudes


def by_sorting(delta: Tensor, fraction: float) -> float:
    energy = delta.double().square().flatten().sort(descending=True).values
    return float(energy[: math.ceil(fraction * len(energy))].sum() / energy.sum())


@pytest.mark.parametrize("fraction", [*FRACTIONS, 1.0])
def test_top_energy_equals_sorting(fraction: float) -> None:
    generator = torch.Generator().manual_seed(0)
    source = 0.02 * torch.randn(300, 70, generator=generator)
    trained = source + 1e-3 * torch.randn(300, 70, generator=generator) ** 3
    found = magnitudes(source, trained)
    bf16 = trained.bfloat16() - source.bfloat16()
    assert found["bf16"].top_energy(fraction) == pytest.approx(by_sorting(bf16, fraction), rel=1e-12)
    assert found["fp32"].top_energy(fraction) == pytest.approx(by_sorting(trained - source, fraction), rel=2e-3)


def test_histograms_add_up_to_the_whole() -> None:
    source, trained = torch.zeros(1000), torch.linspace(-1, 1, 1000)
    whole = magnitudes(source, trained)["bf16"]
    parts = [magnitudes(source[i : i + 100], trained[i : i + 100])["bf16"] for i in range(0, 1000, 100)]
    assert sum(parts, Magnitudes()).top_energy(0.01) == pytest.approx(whole.top_energy(0.01), rel=1e-12)


def test_one_coordinate_holds_everything() -> None:
    trained = torch.zeros(10_000)
    trained[77] = -3
    assert magnitudes(torch.zeros(10_000), trained)["fp32"].top_energy(0.001) == 1


def test_no_update_has_no_concentration() -> None:
    assert magnitudes(torch.ones(10), torch.ones(10))["bf16"].top_energy(0.05) == 0
