"""The norm-matched rounding null."""

import math

import pytest
import torch

from distill.analysis.nulls import rounding_null
from distill.analysis.sparsity import compare


def source() -> torch.Tensor:
    return 0.02 * torch.randn(512, 512, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sigma", [2e-6, 2e-5, 1e-3])
def test_norm_is_matched_as_stored(dtype: torch.dtype, sigma: float) -> None:
    start = source().to(dtype)
    null = rounding_null("w", start, sigma * 512, dtype, seed=0)
    assert math.sqrt(null["fp32"].update_energy) == pytest.approx(sigma * 512, rel=5e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_structureless_update_equals_its_null(dtype: torch.dtype) -> None:
    start = source().to(dtype)
    trained = (start.float() + 2e-5 * torch.randn(512, 512, generator=torch.Generator().manual_seed(1))).to(dtype)
    observed = compare(start, trained)
    null = rounding_null("w", start, math.sqrt(observed["fp32"].update_energy), dtype, seed=0)
    for precision in ("bf16", "fp32"):
        assert null[precision].sparsity() == pytest.approx(observed[precision].sparsity(), abs=0.01)


def test_rounding_alone_is_sparse() -> None:
    """The measured case of a 512 by 512 matrix and a standard deviation of 2e-5: most coordinates do not move."""
    null = rounding_null("w", source(), 2e-5 * 512, torch.float32, seed=0)
    assert 0.6 < null["bf16"].sparsity() < 0.9
    assert null["fp32"].sparsity(0.0) < 0.01


def test_a_checkpoint_stored_in_bf16_has_a_rounded_null() -> None:
    start = source().bfloat16()
    null = rounding_null("w", start, 2e-5 * 512, torch.bfloat16, seed=0)
    assert null["fp32"].within == null["bf16"].within


def test_seed_and_name_decide() -> None:
    same = [rounding_null("w", source(), 0.01, torch.float32, seed=1) for _ in range(2)]
    assert same[0] == same[1]
    assert rounding_null("w", source(), 0.01, torch.float32, seed=2) != same[0]
    assert rounding_null("v", source(), 0.01, torch.float32, seed=1) != same[0]


def test_no_update_has_a_still_null() -> None:
    null = rounding_null("w", source(), 0.0, torch.float32, seed=0)
    assert null["fp32"].sparsity(0.0) == null["bf16"].sparsity(0.0) == 1
