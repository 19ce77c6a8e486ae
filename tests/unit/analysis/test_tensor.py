"""One tensor in both precisions with its null, down to shapes that are no matrix."""

import math

import pytest
import torch
from torch import Tensor

from distill.analysis import principal, spectrum
from distill.analysis.sparsity import compare
from distill.analysis.tensor import Options, measure


def pair(*shape: int, scale: float = 2e-5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    source = 0.02 * torch.randn(shape, generator=generator)
    return source, source + scale * torch.randn(shape, generator=generator)


def test_a_matrix_has_everything_in_both_precisions_and_draws() -> None:
    source, trained = pair(48, 32)
    found = measure("w", source, trained, None, Options(draws=2))
    assert len(found.draws) == 2
    for parts in (found.observed, *found.draws):
        for part in parts.values():
            assert set(part.matrix) == {*spectrum.METRICS, *principal.METRICS}
            assert part.coverage is not None
            assert part.shared is None
            assert part.spectrum[0] == 1
            assert len(part.spectrum) == 32
            assert part.error < 1e-6
    assert {key: part.counts for key, part in found.observed.items()} == compare(source, trained)


def test_the_bf16_row_decomposes_what_a_bf16_checkpoint_shows() -> None:
    source, trained = pair(40, 24)
    found = measure("w", source, trained, None, Options(draws=0)).observed
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        delta = (trained.to(dtype) - source.to(dtype)).double()
        values = torch.linalg.svdvals(delta)
        stable = float(values.square().sum() / values[0] ** 2)
        assert found[precision].matrix["stable_rank"] == pytest.approx(stable, rel=1e-4)


def test_draws_have_the_norm_of_the_update_and_differ() -> None:
    source, trained = pair(64, 64)
    found = measure("w", source, trained, None, Options(draws=3, spectral=False))
    norms = [math.sqrt(draw["fp32"].counts.update_energy) for draw in found.draws]
    observed = math.sqrt(found.observed["fp32"].counts.update_energy)
    assert norms == pytest.approx([observed] * 3, rel=5e-3)
    assert len({draw["bf16"].counts.within for draw in found.draws}) == 3


def test_seed_and_name_decide_the_draws() -> None:
    source, trained = pair(16, 16)

    def ranks(name: str, seed: int) -> float:
        draw = measure(name, source, trained, None, Options(seed=seed, draws=1)).draws[0]
        return draw["bf16"].matrix["stable_rank"]

    assert ranks("w", 0) == ranks("w", 0)
    assert len({ranks("w", 0), ranks("w", 1), ranks("v", 0)}) == 3


@pytest.mark.parametrize("shape", [(), (0,), (7,), (0, 4), (4, 0), (3, 4, 2, 2)])
def test_what_is_no_matrix_has_coordinates_only(shape: tuple[int, ...]) -> None:
    source, trained = pair(*shape)
    found = measure("w", source, trained, trained, Options(draws=1))
    assert found.finite
    for parts in (found.observed, *found.draws):
        assert all(part.coverage is None and not part.matrix for part in parts.values())
        assert parts["fp32"].counts.numel == source.numel()
        assert parts["fp32"].shared is not None


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1)])
def test_the_thinnest_matrices(shape: tuple[int, int]) -> None:
    found = measure("w", *pair(*shape, scale=1e-3), None, Options(draws=1))
    assert found.observed["fp32"].matrix["rank_1e-6"] == 1
    assert found.observed["fp32"].matrix["projection_joint_0.01"] <= 1 + 1e-12


def test_an_update_of_zero_moves_nothing_and_neither_does_its_null() -> None:
    source, _ = pair(12, 9)
    found = measure("w", source, source.clone(), None, Options(draws=1))
    for parts in (found.observed, found.draws[0]):
        assert parts["bf16"].counts.sparsity(0.0) == 1
        assert parts["bf16"].spectrum == ()
        assert "stable_rank" not in parts["bf16"].matrix


def test_a_source_of_zeros_can_be_measured() -> None:
    _, trained = pair(12, 9)
    found = measure("w", torch.zeros(12, 9), trained, None, Options(draws=1)).observed["fp32"]
    assert "spectral_drift" not in found.matrix
    assert found.matrix["spectral_drift_per_update"] == pytest.approx(1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_finite_is_said_to_be_so(value: float, side: int) -> None:
    tensors = pair(6, 6)
    tensors[side][2, 3] = value
    assert not measure("w", *tensors, None, Options()).finite


def test_two_runs_are_compared_and_their_nulls_are_independent() -> None:
    source, trained = pair(96, 96)
    found = measure("w", source, trained, trained, Options(draws=1, spectral=False))
    same, null = (parts["bf16"].shared for parts in (found.observed, found.draws[0]))
    assert same is not None
    assert null is not None
    assert same.metrics()["jaccard_0"] == 1
    # What rounding lets through are small weights in both: more than chance, far from all.
    assert 1.05 < null.metrics()["observed_over_expected_0"] < 3
    assert null.metrics()["jaccard_0"] < 0.6


def test_the_null_of_a_512_matrix() -> None:
    """A structureless update of σ_Δ = 2e-5 after rounding to bf16. σ(W) = 0.055, singular values fall as 1/√i."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(512, 512, generator=generator)).Q for _ in range(2))
    source = (left / torch.arange(1, 513).sqrt()) @ right.T
    source *= 0.055 / source.std()
    trained = source + 2e-5 * torch.randn(512, 512, generator=generator)
    draw = measure("w", source, trained, None, Options(draws=1)).draws[0]["bf16"]
    assert draw.coverage is not None
    covered = draw.coverage.metrics()
    assert 0.81 < draw.counts.sparsity() < 0.86
    assert 0.41 < covered["coverage_low_0.1_0"] < 0.47
    assert 0.02 < covered["coverage_principal_0.1_0"] < 0.04
    assert draw.matrix["projection_joint_0.05"] < 0.01
    assert draw.matrix["rank_1e-6"] == 1
