"""The projection on a subspace against projectors written out."""

import pytest
import torch
from torch import Tensor

from distill.analysis.confine import Subspace, energy


def orthonormal(size: int, k: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, k))[0]


def test_right_side() -> None:
    matrix, right = torch.randn(7, 5), orthonormal(5, 2)
    expected = matrix @ (right @ right.T)
    torch.testing.assert_close(Subspace(right).project(matrix), expected)
    assert float(Subspace(right).energy(matrix)) == pytest.approx(float(expected.square().sum()), rel=1e-5)


def test_both_sides() -> None:
    matrix, right, left = torch.randn(7, 5), orthonormal(5, 2), orthonormal(7, 3)
    expected = left @ left.T @ matrix @ (right @ right.T)
    torch.testing.assert_close(Subspace(right, left).project(matrix), expected)
    assert float(Subspace(right, left).energy(matrix)) == pytest.approx(float(expected.square().sum()), rel=1e-5)


def test_a_projection_of_a_projection_is_itself_and_keeps_the_dtype() -> None:
    matrix, subspace = torch.randn(7, 5), Subspace(orthonormal(5, 2), orthonormal(7, 2))
    once = subspace.project(matrix)
    torch.testing.assert_close(subspace.project(once), once)
    assert subspace.project(matrix.bfloat16()).dtype == torch.bfloat16
    assert float(subspace.energy(once)) == pytest.approx(float(energy(once)), rel=1e-5)


def test_the_whole_space_changes_nothing() -> None:
    matrix = torch.randn(4, 3)
    torch.testing.assert_close(Subspace(torch.eye(3)).project(matrix), matrix)
    assert float(energy(matrix)) == pytest.approx(float(matrix.square().sum()))
