"""Matrices confined to a subspace: the projection, and how much of a matrix's energy it keeps.

Legend: ``m, n`` a matrix's shape, ``k`` dimensions of the subspace.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Subspace:
    """Orthonormal columns: ``right`` ``[n, k]`` of the rows' space and, where both sides count, ``left`` ``[m, k]``."""

    right: Tensor
    left: Tensor | None = None

    def to(self, device: torch.device | str) -> Subspace:
        return Subspace(self.right.to(device), None if self.left is None else self.left.to(device))

    def project(self, matrix: Tensor) -> Tensor:
        """(UUᵀ) M VVᵀ, in the dtype of ``matrix`` ``[m, n]`` but computed in fp32; linear in M."""
        kept = matrix.float() @ self.right @ self.right.T
        if self.left is not None:
            kept = self.left @ (self.left.T @ kept)
        return kept.to(matrix.dtype)

    def energy(self, matrix: Tensor) -> Tensor:
        """‖(Uᵀ) M V‖², the energy of the projection, as a float64 scalar."""
        inside = matrix.double() @ self.right.double()
        if self.left is not None:
            inside = self.left.T.double() @ inside
        return inside.square().sum()


def energy(matrix: Tensor) -> Tensor:
    """‖M‖² as a float64 scalar."""
    return matrix.double().square().sum()
