import math

import pytest
import torch
from torch import Tensor

from distill.analysis import decompose as module
from distill.analysis.decompose import decompose


def matrix(m: int, n: int, rank: int | None = None, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(m, n, generator=generator)
    left, right = torch.randn(m, rank, generator=generator), torch.randn(rank, n, generator=generator)
    return left.double() @ right.double()


SHAPES = [(40, 24), (24, 40), (32, 32), (1, 50), (50, 1), (1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_vectors_are_those_of_a_singular_value_decomposition(shape: tuple[int, int]) -> None:
    given = matrix(*shape)
    k = max(1, min(shape) // 3)
    found = decompose(given, k)
    left, values, right = torch.linalg.svd(given.double(), full_matrices=False)
    assert found.complete
    torch.testing.assert_close(found.values, values, rtol=1e-9, atol=1e-12)
    assert found.left is not None
    assert found.right is not None
    # Singular vectors have a free sign, the products of pairs have not.
    ours = (found.left * found.values[:k]) @ found.right.T
    torch.testing.assert_close(ours, (left[:, :k] * values[:k]) @ right[:k], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.left.T @ found.left, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(decompose(given).values, found.values, rtol=1e-9, atol=1e-12)
    assert decompose(given).left is None


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (25, 25)])
def test_a_matrix_of_low_rank_is_decomposed_exactly(shape: tuple[int, int]) -> None:
    given = matrix(*shape, rank=3)
    found = decompose(given, 5)
    assert found.method == "svd"
    assert int((found.values > 1e-12 * found.values[0]).sum()) == 3
    assert found.left is not None
    assert found.right is not None
    torch.testing.assert_close(found.left.T @ found.left, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close((found.left * found.values[:5]) @ found.right.T, given, rtol=1e-9, atol=1e-9)


def test_well_conditioned_matrices_take_the_gram_matrix_and_state_their_error() -> None:
    found = decompose(matrix(60, 20))
    assert found.method == "gram"
    truth = torch.linalg.svdvals(matrix(60, 20).double())
    assert float(((found.values - truth) / truth).abs().max()) <= found.error < 1e-10


@pytest.mark.parametrize(("rows", "columns"), [(3, 20), (30, 2), (5, 5), (30, 20)])
@pytest.mark.parametrize("vectors", [0, 4])
def test_rows_and_columns_of_zeros_change_nothing(rows: int, columns: int, vectors: int) -> None:
    given = torch.zeros(30, 20)
    given[30 - rows :, :columns] = matrix(rows, columns)
    found = decompose(given, vectors)
    torch.testing.assert_close(found.values, torch.linalg.svdvals(given.double()), rtol=1e-9, atol=1e-12)
    assert len(found.values) == 20
    if vectors:
        for basis in (found.left, found.right):
            assert basis is not None
            torch.testing.assert_close(basis.T @ basis, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 7), (0, 5), (5, 0)])
def test_zero_and_empty_matrices(shape: tuple[int, int]) -> None:
    found = decompose(torch.zeros(shape), min(2, *shape))
    assert found.method == "zero"
    assert found.values.tolist() == [0.0] * min(shape)


def test_large_matrices_are_approximated_and_say_how_well() -> None:
    # A spectrum that falls off, as far as trained weights' do.
    left, _ = torch.linalg.qr(matrix(200, 120).double())
    right, _ = torch.linalg.qr(matrix(120, 120, seed=1).double())
    values = torch.logspace(0, -3, 120, dtype=torch.float64)
    found = decompose((left * values) @ right.T, 8, max_exact_dim=100)
    assert found.method == "randomised"
    assert not found.complete
    torch.testing.assert_close(found.values[:8], values[:8], rtol=1e-4, atol=0)
    truth = math.sqrt(float(values[len(found.values) :].square().sum() / values.square().sum()))
    assert found.error == pytest.approx(truth, rel=0.05)
    assert found.left is not None
    torch.testing.assert_close(found.left.T @ found.left, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-9)


def test_half_precision_is_decomposed_for_what_it_holds() -> None:
    given = matrix(12, 9).bfloat16()
    torch.testing.assert_close(decompose(given).values, torch.linalg.svdvals(given.double()))


@pytest.mark.parametrize(("shape", "vectors"), [((3,), 0), ((3, 4, 5), 0), ((3, 4), 4)])
def test_what_is_no_matrix_or_has_too_few_directions_is_refused(shape: tuple[int, ...], vectors: int) -> None:
    with pytest.raises(ValueError, match="singular vectors need a matrix"):
        decompose(torch.ones(shape), vectors)


def test_the_gram_matrix_is_trusted_only_where_it_is_accurate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Just above TRUSTED every singular value still has five digits."""
    left, _ = torch.linalg.qr(matrix(40, 20).double())
    right, _ = torch.linalg.qr(matrix(20, 20, seed=1).double())
    values = torch.logspace(0, math.log10(1.5 * module.TRUSTED), 20, dtype=torch.float64)
    found = decompose((left * values) @ right.T)
    assert found.method == "gram"
    torch.testing.assert_close(found.values, values, rtol=1e-5, atol=0)
