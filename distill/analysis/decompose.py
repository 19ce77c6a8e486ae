"""One decomposition per matrix, which serves every spectral measure of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

MAX_EXACT_DIM = 8192
"""Smaller side above which a matrix is decomposed approximately: the eigenvectors of its Gram matrix take minutes."""
TRUSTED = 1e-5
"""σ_min/σ₁ down to which the Gram matrix in float64 gives singular values to five digits and more: its eigenvalues are
σ², with an absolute error of about 1e-15·σ₁², so σ has the relative error 1e-15·(σ₁/σ)²/2."""
OVERSAMPLING, POWER_ITERATIONS, LEAST = 32, 4, 64
"""Of the randomised method: extra directions, passes over the matrix, and the fewest singular values it looks for."""
BLOCKS = 4
_EPSILON = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Decomposition:
    """A = UΣVᵀ of a matrix ``[m, n]``, as far as it was asked for.

    ``values`` are singular values, descending, float64 ``[r]``: all of them, r = min(m, n), unless ``method`` is
    ``randomised``. ``left`` ``[m, k]`` and ``right`` ``[n, k]`` are the first k singular vectors, float64, None for
    k = 0. ``method`` is ``gram``, ``svd``, ``zero`` or ``randomised``; ``error`` bounds the relative error of the
    smallest value that is given and not zero (``gram``, ``svd``), or is the share of ‖A‖ in the directions that were
    not found, √(1 - Σσ²/‖A‖²) (``randomised``).
    """

    values: Tensor
    left: Tensor | None
    right: Tensor | None
    method: str
    error: float

    @property
    def complete(self) -> bool:
        """Whether ``values`` are all singular values."""
        return self.method != "randomised"

    @property
    def rank(self) -> int:
        """How many of ``values`` are not zero, nor rounding."""
        return int((self.values > _EPSILON * len(self.values) * self.values[:1]).count_nonzero())


def decompose(matrix: Tensor, vectors: int = 0, *, max_exact_dim: int = MAX_EXACT_DIM) -> Decomposition:
    """Singular values of a finite matrix ``[m, n]`` and its first ``vectors`` singular vectors, in float64.

    The eigenvalues of the smaller Gram matrix where they are accurate to five digits (TRUSTED), a singular value
    decomposition where they are not (matrices of low rank), and a randomised one with its error stated where the
    smaller side is above ``max_exact_dim``. Rows and columns of zeros, frequent in the update of an embedding, cost
    nothing. Runs on the matrix's device.

    Raises:
        ValueError: ``matrix`` has not two dimensions, or fewer singular vectors than were asked for.
    """
    if matrix.ndim != 2 or vectors > min(matrix.shape):
        raise ValueError(f"{vectors} singular vectors need a matrix with as many, not one of {list(matrix.shape)}")
    matrix = matrix.detach()
    filled = matrix != 0
    rows, columns = (filled.any(dim).nonzero().flatten() for dim in (1, 0))
    if not len(rows):
        zeros = torch.zeros(min(matrix.shape), dtype=torch.float64, device=matrix.device)
        return Decomposition(zeros, *_any_vectors(matrix, vectors), "zero", 0.0)
    if vectors > min(len(rows), len(columns)):
        # Directions of zeros are asked for, too.
        rows, columns = (torch.arange(size, device=matrix.device) for size in matrix.shape)
    whole = (len(rows), len(columns)) == tuple(matrix.shape)
    core = matrix.double() if whole else matrix[rows][:, columns].double()
    if min(core.shape) > max_exact_dim:
        return _spread(_randomised(core, vectors), matrix, rows, columns)
    found = _gram(core, vectors)
    if not found.values[-1] > TRUSTED * found.values[0]:
        found = _svd(core, vectors)
    return _spread(found, matrix, rows, columns)


def _any_vectors(matrix: Tensor, vectors: int) -> tuple[Tensor | None, Tensor | None]:
    """Some orthonormal vectors for a matrix of zeros, all of whose directions are singular."""
    if not vectors:
        return None, None
    left, right = (torch.eye(size, vectors, dtype=torch.float64, device=matrix.device) for size in matrix.shape)
    return left, right


def _gram(core: Tensor, vectors: int) -> Decomposition:
    tall = core.shape[0] >= core.shape[1]
    gram = _gram_matrix(core if tall else core.T)
    if not vectors:
        squares, inner = torch.linalg.eigvalsh(gram), None
    else:
        squares, basis = torch.linalg.eigh(gram)
        inner = basis.flip(1)[:, :vectors]
    values = squares.flip(0).clamp(min=0).sqrt()
    error = _EPSILON * len(values) * float((values[0] / values[-1].clamp(min=torch.finfo(torch.float64).tiny)) ** 2)
    if inner is None:
        return Decomposition(values, None, None, "gram", error)
    # Columns that are not orthogonal to rounding belong to values that the caller does not trust.
    outer = (core @ inner if tall else core.T @ inner) / values[:vectors]
    left, right = (outer, inner) if tall else (inner, outer)
    return Decomposition(values, left, right, "gram", error)


def _gram_matrix(tall: Tensor) -> Tensor:
    """AᵀA below its diagonal, which is what the eigenvalue solver reads: a third less work than all of it."""
    size = tall.shape[1]
    gram, step = tall.new_zeros(size, size), max(-(-size // BLOCKS), 1)
    for start in range(0, size, step):
        end = start + step
        torch.mm(tall[:, start:].T, tall[:, start:end], out=gram[start:, start:end])
    return gram


def _svd(core: Tensor, vectors: int) -> Decomposition:
    if not vectors:
        values, left, right = torch.linalg.svdvals(core), None, None
    else:
        outer, values, inner = torch.linalg.svd(core, full_matrices=False)
        left, right = outer[:, :vectors], inner[:vectors].T
    found = Decomposition(values, left, right, "svd", 0.0)
    return replace(found, error=_EPSILON * len(values) * float(values[0] / values[found.rank - 1]))


def _randomised(core: Tensor, vectors: int) -> Decomposition:
    """A randomised decomposition with subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 5.1)."""
    wanted = max(vectors, LEAST)
    generator = torch.Generator(core.device).manual_seed(0)
    size = min(wanted + OVERSAMPLING, *core.shape)
    start = torch.randn(core.shape[1], size, generator=generator, dtype=core.dtype, device=core.device)
    basis = torch.linalg.qr(core @ start).Q
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(core @ torch.linalg.qr(core.T @ basis).Q).Q
    outer, values, inner = torch.linalg.svd(basis.T @ core, full_matrices=False)
    values = values[:wanted]
    lost = max(1 - float(values.square().sum() / core.square().sum()), 0.0)
    left, right = ((basis @ outer)[:, :vectors], inner[:vectors].T) if vectors else (None, None)
    return Decomposition(values, left, right, "randomised", lost**0.5)


def _spread(found: Decomposition, matrix: Tensor, rows: Tensor, columns: Tensor) -> Decomposition:
    """From the rows and columns that are not zero back to the whole matrix."""
    values, left, right = found.values, found.left, found.right
    if found.complete:
        values = torch.cat([values, values.new_zeros(min(matrix.shape) - len(values))])
    if left is not None and right is not None:
        left = left.new_zeros(matrix.shape[0], left.shape[1]).index_copy(0, rows, left)
        right = right.new_zeros(matrix.shape[1], right.shape[1]).index_copy(0, columns, right)
    return Decomposition(values, left, right, found.method, found.error)
