"""The losses of networks that are trained together, and their gradients, against autograd of the formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.models.base import Network
from distill.mutual import Mutual, build
from distill.objective import Objective
from distill.types import Signal

N, WIDTHS, V = 31, (3, 4, 5), 6
LABEL, LOGIT = 0.7, 0.4
"""Of the co-trained networks; the student's are 1 and 0.5."""


def mutual(method: str, networks: int, ensemble: str = "mean") -> Mutual:
    names = cast(dict[str, Network], dict.fromkeys(["a", "b"][: networks - 1]))
    return Mutual(names, cast(Any, method), cast(Any, ensemble), LABEL, LOGIT)


def parts(networks: int) -> tuple[list[Tensor], list[nn.Linear], Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = [
        torch.randn(N, width, dtype=torch.float64, generator=generator).requires_grad_() for width in WIDTHS[:networks]
    ]
    heads = [nn.Linear(width, V, dtype=torch.float64) for width in WIDTHS[:networks]]
    with torch.no_grad():
        for head in heads:
            for parameter in head.parameters():
                parameter.copy_(0.65 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return hidden, heads, torch.randint(V, (N,), generator=generator)


def dml(i: int, z: list[Tensor], y: Tensor, heat: float) -> Tensor:
    own = (z[i] / heat).log_softmax(-1)
    others = [(z[j].detach() / heat).softmax(-1) for j in range(len(z)) if j != i]
    return sum((functional.kl_div(own, p, reduction="none").sum(-1) for p in others), torch.zeros(N)) / len(others)


def kdcl(i: int, z: list[Tensor], y: Tensor, heat: float) -> Tensor:
    target = (torch.stack(z).detach().mean(0) / heat).softmax(-1)
    return functional.kl_div((z[i] / heat).log_softmax(-1), target, reduction="none").sum(-1)


def kept(i: int, z: list[Tensor], y: Tensor, heat: float) -> Tensor:
    """1 where SwitOKD's teacher learns."""
    if i == 0:
        return torch.ones(N)
    p, label = [(one.detach() / heat).softmax(-1) for one in z], functional.one_hot(y, V)
    e_s, e_t = ((one - label).abs().sum(-1) for one in p)
    return ((p[0] - p[1]).abs().sum(-1) <= e_s - torch.exp(-e_t / (e_s + e_t)) * e_t).double()


def everywhere(i: int, z: list[Tensor], y: Tensor, heat: float) -> Tensor:
    return torch.ones(N)


Formula = Callable[[int, list[Tensor], Tensor, float], Tensor]


@pytest.mark.parametrize("chunk", [3, 1024])
@pytest.mark.parametrize(("heat", "squared"), [(1.0, False), (2.0, True)])
@pytest.mark.parametrize(
    ("method", "networks", "apart", "learns"),
    [
        ("dml", 2, dml, everywhere),
        ("dml", 3, dml, everywhere),
        ("kdcl", 3, kdcl, everywhere),
        ("switokd", 2, dml, kept),
    ],
)
def test_losses_and_gradients_are_those_of_the_formulas(
    method: str, networks: int, apart: Formula, learns: Formula, heat: float, squared: bool, chunk: int
) -> None:
    hidden, heads, y = parts(networks)
    objective = Objective(1.0, 0.5, "forward_kl", temperature=heat, scale_by_temperature_squared=squared)
    objective = Objective(**vars(objective) | {"chunk_size": chunk})
    signals = [Signal(states, head) for states, head in zip(hidden, heads, strict=True)]
    loss, metrics = mutual(method, networks)(objective, signals, y)
    leaves = [*hidden, *(parameter for head in heads for parameter in head.parameters())]
    found = torch.autograd.grad(loss, leaves)

    z = [head(states) for states, head in zip(hidden, heads, strict=True)]
    total = torch.zeros((), dtype=torch.float64)
    for i, name in enumerate(["", "online/a/", "online/b/"][:networks]):
        label, logit = (1.0, 0.5) if i == 0 else (LABEL, LOGIT)
        ce, kl = functional.cross_entropy(z[i], y, reduction="none"), apart(i, z, y, heat)
        learning = learns(i, z, y, heat)
        each = learning * (label * ce + logit * (heat**2 if squared else 1.0) * kl)
        total = total + each.sum()
        for key, value in (("ce", ce), ("forward_kl", kl), ("loss", each)):
            assert float(metrics[f"{name}{key}"]) == pytest.approx(float(value.detach().sum()), rel=1e-6)
        if method == "switokd" and i > 0:
            assert float(metrics["online/a/paused"]) == N - float(learning.sum())
            assert 0 < float(learning.sum()) < N
    assert float(loss.detach()) == pytest.approx(float(total.detach()), rel=1e-12)
    for ours, expected in zip(found, torch.autograd.grad(total, leaves), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ensemble", ["mean", "min_logit", "naive"])
def test_all_networks_learn_from_one_ensemble(ensemble: str) -> None:
    """Where all say the same, so does the ensemble of whichever kind but the one that sharpens."""
    hidden, heads, y = parts(1)
    signals = [Signal(hidden[0], heads[0])] * 3
    _, metrics = mutual("kdcl", 3, ensemble)(Objective(1.0, 1.0, "forward_kl"), signals, y)
    for name in ("", "online/a/", "online/b/"):
        assert float(metrics[f"{name}forward_kl"]) == pytest.approx(0, abs=1e-9)


def test_no_position_at_all_is_a_loss_of_zero_with_a_graph() -> None:
    hidden, heads, y = parts(2)
    signals = [Signal(states[:0], head) for states, head in zip(hidden, heads, strict=True)]
    loss, _ = mutual("dml", 2)(Objective(1.0, 1.0, "forward_kl"), signals, y[:0])
    loss.backward()
    assert float(loss) == 0
    assert all(float(parameter.grad.abs().sum()) == 0 for head in heads for parameter in head.parameters())  # type: ignore[union-attr]


def test_weights_are_those_of_the_objective_unless_given() -> None:
    sections = {"objective": {"label_weight": 1.0, "logit_weight": 0.5}}
    online = {"method": "dml", "ensemble": "mean", "lr": None, "label_weight": None, "logit_weight": 0.0}
    found = build(sections | {"online": online}, {})
    assert (found.label_weight, found.logit_weight) == (1.0, 0.0)
