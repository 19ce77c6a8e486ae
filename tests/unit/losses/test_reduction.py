"""KD as partial variance reduction, in float64: where it is (1 - λ)·CE + λ·KD, where it is not, and SVRG."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from distill.losses.reduction import corrected, predicted_weight, pull, slope

FEATURES, CLASSES, SAMPLES = 6, 4, 40


def draws(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs ``[n, F]``, labels ``[n]``, weights of the student and of the teacher ``[V, F]``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, FEATURES, dtype=torch.float64, generator=generator)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    weights = torch.randn(2, CLASSES, FEATURES, dtype=torch.float64, generator=generator)
    return x, labels, weights[0], weights[1]


def ce(w: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(x @ w.T, labels)


def gradient(w: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    leaf = w.clone().requires_grad_()
    return torch.autograd.grad(ce(leaf, x, labels), leaf)[0]


def distilled(w: Tensor, teacher: Tensor, x: Tensor, labels: Tensor, weight: float, tau: float = 1.0) -> Tensor:
    """The gradient of (1 - λ)·CE + λ·τ²·KL(teacher ‖ student), both at temperature τ."""
    leaf = w.clone().requires_grad_()
    student, target = (x @ leaf.T / tau).log_softmax(-1), (x @ teacher.T / tau).softmax(-1)
    kd = tau**2 * functional.kl_div(student, target, reduction="batchmean")
    return torch.autograd.grad((1 - weight) * ce(leaf, x, labels) + weight * kd, leaf)[0]


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_softmax_regression_is_distilled_exactly(weight: float, seed: int) -> None:
    x, labels, student, teacher = draws(seed)
    found = corrected(gradient(student, x, labels), gradient(teacher, x, labels), weight)
    torch.testing.assert_close(found, distilled(student, teacher, x, labels, weight), rtol=0, atol=1e-12)


@pytest.mark.parametrize("tau", [0.5, 2.0, 4.0])
def test_at_another_temperature_it_is_not(tau: float) -> None:
    """Scaled back by τ² or not."""
    x, labels, student, teacher = draws()
    found = corrected(gradient(student, x, labels), gradient(teacher, x, labels), 0.5)
    for scale in (1.0, tau**2):
        other = distilled(student, teacher, x, labels, 0.5, tau)
        plain = 0.5 * gradient(student, x, labels)
        other = plain + (other - plain) * scale / tau**2
        assert float((found - other).norm() / found.norm()) > 0.05


def test_the_squared_loss_is_distilled_exactly_too() -> None:
    x, _, student, teacher = draws()
    y = torch.randn(SAMPLES, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def of(w: Tensor, target: Tensor) -> Tensor:
        return 2 * (x @ w.T - target).T @ x / SAMPLES

    found = corrected(of(student, y), of(teacher, y), 0.4)
    torch.testing.assert_close(found, 0.6 * of(student, y) + 0.4 * of(student, x @ teacher.T), rtol=0, atol=1e-12)


def test_a_network_with_a_hidden_layer_is_not_distilled_by_it() -> None:
    """Its gradients at two places see two features: the identity is one of models linear in their parameters."""
    x, labels, *_ = draws()
    weights = torch.randn(2, 2, FEATURES, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def logits(pair: Tensor) -> Tensor:
        return (x @ pair[0].T).relu() @ pair[1, :CLASSES].T

    def of(loss: Tensor, leaf: Tensor) -> Tensor:
        return torch.autograd.grad(loss, leaf)[0]

    student, teacher = (pair.clone().requires_grad_() for pair in weights)
    gradients = [of(functional.cross_entropy(logits(pair), labels), pair) for pair in (student, teacher)]
    target = logits(teacher).detach().softmax(-1)
    kd = functional.kl_div(logits(student).log_softmax(-1), target, reduction="batchmean")
    expected = of(0.5 * functional.cross_entropy(logits(student), labels) + 0.5 * kd, student)
    assert float((corrected(*gradients, 0.5) - expected).norm() / expected.norm()) > 0.1


def test_the_unbiased_form_has_the_mean_of_the_plain_gradient() -> None:
    x, labels, student, teacher = draws()
    full = gradient(teacher, x, labels)
    parts = [
        corrected(gradient(student, *part), gradient(teacher, *part), 0.8, full)
        for part in zip(x.split(5), labels.split(5), strict=True)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(0), gradient(student, x, labels), rtol=0, atol=1e-12)


def test_svrg_has_no_noise_where_it_was_refreshed() -> None:
    x, labels, student, _ = draws()
    full = gradient(student, x, labels)
    for part in zip(x.split(5), labels.split(5), strict=True):
        found = corrected(gradient(student, *part), gradient(student, *part), 1.0, full)
        torch.testing.assert_close(found, full, rtol=0, atol=1e-12)


def test_what_is_pulled_is_added_to_the_gradient() -> None:
    x, labels, student, teacher = draws()
    leaf = student.clone().requires_grad_()
    reference, full = gradient(teacher, x[:5], labels[:5]), gradient(teacher, x, labels)
    loss = ce(leaf, x[:5], labels[:5]) + pull([leaf], [slope(reference, 0.6, full)])
    expected = corrected(gradient(student, x[:5], labels[:5]), reference, 0.6, full)
    torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], expected, rtol=0, atol=1e-12)


def test_the_predicted_weight_falls_with_the_teachers_bias() -> None:
    perfect = predicted_weight(step=0.5, curvature=0.1, product=2.0, square=2.0, bias=0.0)
    assert perfect == 1.0
    falling = [predicted_weight(0.5, 0.1, 2.0, 2.0, bias) for bias in (0.01, 0.1, 1.0)]
    assert all(before > after for before, after in pairwise([perfect, *falling]))
    assert falling[1] == pytest.approx(0.5)
