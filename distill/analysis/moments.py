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


def measure(gradient: Tensor, momentum: Tensor, second: Tensor | None) -> Moments:
    """The sums of one tensor, or of a piece of it; ``second`` is None for an optimizer without a second moment.

    A scale of the gradient (clipping) or of the moments (bias correction) changes neither ratio.
    """
    tensors = (gradient, momentum) if second is None else (gradient, momentum, second)
    total = torch.zeros(FIELDS, dtype=torch.float64, device=gradient.device)
    for piece in pieces(*tensors):
        g, m = piece[0].double(), piece[1].double()
        total[:3] += torch.stack([(g * m).sum(), g.square().sum(), m.square().sum()])
        if second is not None:
            v = piece[2].double()
            total[3:5] += torch.stack([v.sqrt().sum(), v.sum()])
    total[5] = 0 if second is None else second.numel()
    return Moments(*total.tolist())
