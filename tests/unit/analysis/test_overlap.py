import pytest
import torch

from distill.analysis.overlap import METRICS, shared

ONE = torch.tensor([1.0, 1.0, 1.0, 1e-6, 0.0, 0.0, 0.0, 0.0])
TWO = torch.tensor([1.0, 0.0, 1e-6, 1.0, 1.0, 0.0, 0.0, 0.0])


def test_two_updates_by_hand() -> None:
    found = shared(ONE, TWO).metrics()
    assert tuple(found) == METRICS
    assert found["overlap_of_trained_0"] == 3 / 4
    assert found["overlap_of_other_0"] == 3 / 4
    assert found["jaccard_0"] == 3 / 5
    assert found["observed_over_expected_0"] == pytest.approx(3 / (4 * 4 / 8))
    assert found["overlap_of_trained_1e-5"] == 1 / 3
    assert found["jaccard_1e-5"] == 1 / 5


def test_sums_are_those_of_one_tensor() -> None:
    assert (shared(ONE[:3], TWO[:3]) + shared(ONE[3:], TWO[3:])).metrics() == shared(ONE, TWO).metrics()


def test_independent_updates_share_what_chance_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = ((torch.rand(200_000, generator=generator) < share).float() for share in (0.2, 0.5))
    assert shared(one, two).metrics()["observed_over_expected_0"] == pytest.approx(1, abs=0.02)


def test_what_would_divide_by_zero_is_left_out() -> None:
    nothing = torch.zeros(8)
    assert set(shared(ONE, nothing).metrics()) == {
        *("overlap_of_trained_0", "overlap_of_trained_1e-5", "jaccard_0", "jaccard_1e-5")
    }
    assert shared(nothing, nothing).metrics() == {}
    assert shared(torch.empty(0), torch.empty(0)).metrics() == {}
