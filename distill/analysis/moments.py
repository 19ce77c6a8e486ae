"""How an optimizer's state lies to the gradient: cos(g, m) and the coefficient of variation of √v (arXiv 2606.13657).

g is the gradient of an optimizer step, m the first moment (of Adam; SGD's momentum buffer) and v the second moment as
they are before that step, so neither contains g. All sums are float64 and add up over pieces, tensors and ranks.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from distill.analysis.sparsity import pieces


@dataclass(frozen=True)
class Moments:
    """Addable sums over coordinates: Σgm, Σg², Σm², Σ√v, Σv and the number of coordinates that have a v."""

    product: float = 0.0
    gradient_energy: float = 0.0
    momentum_energy: float = 0.0
    root: float = 0.0
    second: float = 0.0
    count: float = 0.0

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def cosine(self) -> float | None:
        """cos(g, m), None where one of them is zero."""
        norms = math.sqrt(self.gradient_energy) * math.sqrt(self.momentum_energy)
        return self.product / norms if norms else None

    @property
    def variation(self) -> float | None:
        """Standard deviation of √v over the coordinates divided by its mean, None without any v above 0."""
        if not self.root:
            return None
        mean = self.root / self.count
        return math.sqrt(max(self.second / self.count - mean * mean, 0.0)) / mean


FIELDS = len(astuple(Moments()))


def agreement(gradient: Tensor, momentum: Tensor) -> Moments:
    """What g and m of one tensor, or of a piece of it, add to :attr:`Moments.cosine`, which scaling does not change."""
    total = torch.zeros(3, dtype=torch.float64, device=gradient.device)
    for piece in pieces(gradient, momentum):
        g, m = (values.double() for values in piece)
        total += torch.stack([(g * m).sum(), g.square().sum(), m.square().sum()])
    return Moments(*total.tolist())


def spread(second: Tensor) -> Moments:
    """What v of one tensor, or of a piece of it, adds to :attr:`Moments.variation`, which scaling does not change."""
    total = torch.zeros(2, dtype=torch.float64, device=second.device)
    for (piece,) in pieces(second):
        v = piece.double()
        total += torch.stack([v.sqrt().sum(), v.sum()])
    root, whole = total.tolist()
    return Moments(root=root, second=whole, count=float(second.numel()))
