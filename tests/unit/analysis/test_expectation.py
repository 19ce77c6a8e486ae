"""The rounding null's expectation: against its draws, and in cases that can be said in one line."""

import math

import pytest
import torch
from torch import Tensor

from distill.analysis.expectation import GRIDS, expected_within, noise_scale, profile
from distill.analysis.nulls import rounding_null
from distill.analysis.sparsity import PRECISIONS, TOLERANCES


def normal(*shape: int, seed: int = 0, scale: float = 0.02) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_values() -> Tensor:
    """Values around and far below the tolerances, where a bfloat16 step is smaller than they are, and exact zeros."""
    sizes = torch.logspace(-12, -2, 1 << 18) * torch.sign(normal(1 << 18))
    return torch.cat([sizes, torch.zeros(1000)])


SOURCES = {
    "normal": normal(512, 512),
    "bf16 numbers": normal(512, 512).bfloat16().float(),
    "small": small_values(),
    "ones": torch.ones(20_000),
}


def expected(source: Tensor, norm: float, dtype: torch.dtype) -> Tensor:
    found = profile(source)
    sigma = noise_scale(found.grids()[None], torch.tensor([norm**2]), dtype)
    return expected_within(found, float(sigma), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sigma", [2e-6, 2e-5, 5e-4])
@pytest.mark.parametrize("name", SOURCES)
def test_draws_agree_with_the_expectation(name: str, sigma: float, dtype: torch.dtype) -> None:
    """Within five standard deviations of the draws' counts; half precision is matched by norm, which is a draw, too."""
    source = SOURCES[name].to(dtype)
    numel = source.numel()
    norm = sigma * math.sqrt(numel)
    drawn = rounding_null(name, source, norm, dtype, seed=0)
    found = expected(source, norm, dtype)
    for row, precision in enumerate(PRECISIONS):
        for column, tolerance in enumerate(TOLERANCES):
            share = float(found[row, column]) / numel
            slack = 5 * math.sqrt(max(share * (1 - share), 1 / numel) / numel)
            slack += 0.0 if dtype == torch.float32 else 0.006
            assert drawn[precision].sparsity(tolerance) == pytest.approx(share, abs=slack), (precision, tolerance)


def test_pieces_add_up_to_the_whole() -> None:
    source = torch.cat([SOURCES["normal"].flatten(), SOURCES["small"]])
    parts = [profile(piece) for piece in source.split(100_001)]
    whole = profile(source)
    assert torch.equal(sum(part.grids() for part in parts), whole.grids())
    together = sum(expected_within(part, 2e-5, torch.float32) for part in parts)
    torch.testing.assert_close(together, expected_within(whole, 2e-5, torch.float32), rtol=1e-12, atol=0)


def test_no_movement_stays_where_it_is() -> None:
    assert expected(SOURCES["normal"], 0.0, torch.bfloat16).tolist() == [[512.0 * 512] * 6] * 2


def test_nothing_is_expected_of_nothing() -> None:
    empty = profile(torch.empty(0))
    assert empty.grids().shape == (GRIDS,)
    assert expected_within(empty, 1e-5, torch.float32).abs().sum() == 0
    assert noise_scale(empty.grids()[None], torch.tensor([0.0]), torch.bfloat16).tolist() == [0.0]


def test_a_scalar_and_the_largest_number_have_a_profile() -> None:
    assert expected_within(profile(torch.tensor(1.0)), 1e-4, torch.float32)[0, 0] == pytest.approx(1.0)
    largest = torch.tensor([torch.finfo(torch.bfloat16).max])
    assert expected_within(profile(largest), 1.0, torch.float32)[0].tolist() == [1.0] * 6


def test_noise_of_one_moved_coordinate_in_bf16_is_found() -> None:
    """A single step of the grid among a million values: the noise that leaves it is far smaller than a step."""
    source = torch.full((1 << 20,), 1.5).bfloat16()
    step = 2.0**-7
    sigma = noise_scale(profile(source).grids()[None], torch.tensor([step**2]), torch.bfloat16)
    moved = source.numel() * math.erfc(step / 2 / float(sigma) / math.sqrt(2))
    assert moved == pytest.approx(1.0, rel=1e-6)


def test_every_tensor_has_its_own_noise() -> None:
    grids = torch.stack([profile(SOURCES[name]).grids() for name in ("normal", "ones")])
    energies = torch.tensor([1e-4, 1e-6])
    together = noise_scale(grids, energies, torch.bfloat16)
    alone = [noise_scale(grids[[i]], energies[[i]], torch.bfloat16) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone))
