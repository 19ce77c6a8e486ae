import math

import pytest
import torch
from torch import Tensor

from distill.analysis.decompose import decompose
from distill.analysis.spectrum import METRICS, spectral


def measured(update: Tensor, **options: int) -> dict[str, float]:
    return spectral(decompose(update, **options), float(update.double().square().sum()))


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (64, 64), (1, 30)])
def test_measures_are_those_of_their_definitions(shape: tuple[int, int]) -> None:
    update = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(update.double())
    found = measured(update)
    assert tuple(found) == (*METRICS[:3], "entropy_rank", "stable_rank", *METRICS[5:])
    share = values / values.sum()
    assert found["entropy_rank"] == pytest.approx(math.exp(float(-(share * share.log()).sum())), rel=1e-6)
    assert found["stable_rank"] == pytest.approx(float(values.square().sum() / values[0] ** 2), rel=1e-6)
    for k in (1, 2, 4, 8, 16, 32, 64):
        expected = float(values[:k].square().sum() / values.square().sum())
        assert found[f"spectral_energy_{k}"] == pytest.approx(expected, rel=1e-6)
    assert found["rank_1e-6"] == 1.0


def test_the_rank_counts_what_is_above_a_share_of_the_largest() -> None:
    values = torch.tensor([1.0, 0.5, 5e-5, 5e-6, 5e-7, 0.0], dtype=torch.float64)
    found = measured(torch.diag(values))
    assert [found[f"rank_{label}"] for label in ("1e-6", "1e-5", "1e-4")] == [4 / 6, 3 / 6, 2 / 6]


def test_a_single_direction_has_rank_one() -> None:
    found = measured(torch.outer(torch.randn(20).double(), torch.randn(30).double()))
    assert found["stable_rank"] == pytest.approx(1)
    assert found["entropy_rank"] == pytest.approx(1)
    assert found["spectral_energy_1"] == pytest.approx(1)
    assert found["rank_1e-6"] == 1 / 20


def test_equal_values_have_full_rank() -> None:
    found = measured(torch.eye(8))
    assert found["stable_rank"] == pytest.approx(8)
    assert found["entropy_rank"] == pytest.approx(8)
    assert found["spectral_energy_4"] == pytest.approx(0.5)


@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_scale_and_rotation_change_nothing(scale: float) -> None:
    update = torch.randn(30, 20).double()
    turn, _ = torch.linalg.qr(torch.randn(30, 30).double())
    assert measured(scale * turn @ update) == pytest.approx(measured(update), rel=1e-6)


def test_nothing_is_said_of_an_update_of_zero() -> None:
    assert measured(torch.zeros(4, 5)) == {}


def test_an_approximate_decomposition_has_no_ranks() -> None:
    update = torch.randn(90, 80)
    found, exact = measured(update, max_exact_dim=70), measured(update)
    assert not {"entropy_rank", "rank_1e-6"} & found.keys()
    assert found["stable_rank"] == pytest.approx(exact["stable_rank"], rel=1e-2)
