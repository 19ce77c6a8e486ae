import pytest
import torch

from distill.analysis.subspace import similarity


def test_the_same_subspace_in_another_basis_is_1() -> None:
    basis, _ = torch.linalg.qr(torch.randn(40, 6).double())
    turn, _ = torch.linalg.qr(torch.randn(6, 6).double())
    assert similarity(basis, basis @ turn) == pytest.approx(1)


def test_orthogonal_subspaces_are_0_and_half_shared_ones_a_half() -> None:
    unit = torch.eye(8)
    assert similarity(unit[:, :2], unit[:, 2:4]) == 0
    assert similarity(unit[:, :2], unit[:, 1:3]) == 0.5


@pytest.mark.parametrize("last", [(8, 3), (7, 2), (8,)])
def test_bases_of_different_shapes_are_refused(last: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"two bases \[n, K\]"):
        similarity(torch.eye(8, 2), torch.ones(last))
