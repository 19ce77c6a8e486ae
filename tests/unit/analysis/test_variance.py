"""The estimates against their definitions, and what the predicted λ means where the best one is known.

The model is softmax regression, linear in its parameters, in fp64: gradients are outer products.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.analysis.sketch import Sketch
from distill.analysis.variance import Blocks, Moments, mean, moments, sketch_error, spread
from distill.losses.divergence import forward_kl

CLASSES, WIDTH, DECAY, RATE = 5, 8, 1e-2, 0.3
CURVATURE = 0.05
"""Of the loss at its optimum: eigenvalues of the Hessian are between DECAY and 0.18."""


def data(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features ``[n, H]`` and labels of a noisy linear rule."""
    generator = torch.Generator().manual_seed(seed)
    rule = torch.randn(WIDTH, CLASSES, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    x = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)
    y = torch.multinomial(torch.softmax(x @ rule, -1), 1, generator=generator)[:, 0]
    return x, y


def residual(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """d CE / d logits, ``[n, V]``."""
    return torch.softmax(x @ weights, -1) - torch.nn.functional.one_hot(y, CLASSES)


def per_sample(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """CE's gradient of each sample, ``[n, H·V]``."""
    return torch.einsum("nh,nv->nhv", x, residual(weights, x, y)).flatten(1)


def optimum(x: Tensor, y: Tensor) -> Tensor:
    weights = torch.zeros(WIDTH, CLASSES, dtype=torch.float64)
    for _ in range(3000):
        weights = weights - 0.5 * (x.T @ residual(weights, x, y) / len(x) + DECAY * weights)
    return weights


def blocks(ce: Tensor, difference: Tensor, counts: Tensor, exact: bool = True) -> Blocks:
    """From sums over each block's targets."""
    total = counts.sum()
    return Blocks(counts, ce / total, difference / total, exact)


def measured(weights: Tensor, teacher: Tensor, sizes: list[int], seed: int = 1) -> Blocks:
    x, y = data(sum(sizes), seed)
    parts = [per_sample(w, x, y).split(sizes) for w in (weights, teacher)]
    ce, difference = (torch.stack([part.sum(0) for part in split]) for split in parts)
    return blocks(ce, difference, torch.tensor(sizes))


def test_the_mixture_of_losses_is_the_corrected_gradient() -> None:
    """Linear in the parameters, τ = 1: the gradient of (1-λ)·CE + λ·KD is ∇f(x) - λ·∇f(θ), to rounding."""
    x, y = data(40)
    student, teacher = (torch.randn(WIDTH, CLASSES, dtype=torch.float64) for _ in range(2))
    for share in (0.0, 0.3, 1.0):
        weights = student.clone().requires_grad_()
        ce = torch.nn.functional.cross_entropy(x @ weights, y)
        kd = forward_kl(x @ weights, x @ teacher).mean()
        [mixed] = torch.autograd.grad((1 - share) * ce + share * kd, weights)
        corrected = (per_sample(student, x, y) - share * per_sample(teacher, x, y)).mean(0)
        torch.testing.assert_close(mixed.flatten(), corrected, rtol=0, atol=1e-12)


def test_moments_are_their_definitions_where_blocks_are_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    g, d = (torch.randn(6, 11, generator=generator, dtype=torch.float64) + 1 for _ in range(2))
    counts = torch.full((6,), 10)
    found = moments(blocks(10 * g, 10 * d, counts))
    # g are means over blocks; the step's gradient is the mean of 6 of them.
    assert found.ce == pytest.approx(float(g.var(0).sum()) / 6, rel=1e-12)
    assert found.teacher == pytest.approx(float(d.var(0).sum()) / 6, rel=1e-12)
    covariance = ((g - g.mean(0)) * (d - d.mean(0))).sum() / 5 / 6
    assert found.covariance == pytest.approx(float(covariance), rel=1e-12)
    assert found.bias == pytest.approx(float(d.mean(0).square().sum()) - found.teacher, rel=1e-12)
    k = (g - d).mean(0)
    assert found.cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(g.mean(0), k, dim=0)), rel=1e-12)
    assert found.corrected(0.4) == pytest.approx(float((g - 0.4 * d).var(0).sum()) / 6, rel=1e-12)
    assert found.best(0) == pytest.approx(min(max(found.covariance / found.teacher, 0), 1))


def test_moments_estimate_the_truth_with_unequal_blocks() -> None:
    """Over many draws: the variance of the mean of 60 samples, and ‖E d‖², whatever the blocks."""
    generator = torch.Generator().manual_seed(0)
    mean, samples, draws = 0.3, 60, 3000
    sizes = [2, 5, 8, 11, 14, 20]
    totals = dict.fromkeys(("ce", "teacher", "covariance", "bias"), 0.0)
    for _ in range(draws):
        g = torch.randn(samples, 4, generator=generator, dtype=torch.float64)
        d = 0.5 * g + torch.randn(samples, 4, generator=generator, dtype=torch.float64) + mean
        parts = [torch.stack([part.sum(0) for part in values.split(sizes)]) for values in (g, d)]
        found = moments(blocks(*parts, torch.tensor(sizes)))
        totals = {name: total + getattr(found, name) / draws for name, total in totals.items()}
    assert totals["ce"] == pytest.approx(4 / samples, rel=0.15)
    assert totals["teacher"] == pytest.approx(4 * 1.25 / samples, rel=0.15)
    assert totals["covariance"] == pytest.approx(4 * 0.5 / samples, rel=0.15)
    assert totals["bias"] == pytest.approx(4 * mean**2, rel=0.05)


def test_lambda_trades_noise_for_bias() -> None:
    one = Moments(ce=1.0, teacher=1.0, covariance=0.8, bias=0.5, cosine=1.0)
    assert one.best(0) == 0.8
    assert one.best(1) == pytest.approx(0.8 / 1.5)
    best = one.best(7)
    objective = {share: one.corrected(share) + 7 * share**2 * one.bias for share in (best - 0.01, best, best + 0.01)}
    assert min(objective, key=lambda share: objective[share]) == best
    assert Moments(1.0, 1.0, -0.5, 0.0, 1.0).best(0) == 0
    assert Moments(1.0, 0.1, 0.5, 0.0, 1.0).best(0) == 1
    assert Moments(0.0, 0.0, 0.0, 0.0, 0.0).best(10) == 0
    assert Moments(1.0, 1.0, -0.5, 0.0, 1.0).unclamped(0) == -0.5
    assert Moments(1.0, 0.1, 0.5, -3.0, 1.0).unclamped(7) == 5, "no bias is below none"
    assert one.corrected(one.best(0)) / one.ce == pytest.approx(1 - one.correlation**2)


def test_where_all_is_clamped_there_is_still_an_error() -> None:
    generator = torch.Generator().manual_seed(0)
    d, rest = (torch.randn(8, 50, generator=generator, dtype=torch.float64) for _ in range(2))
    step = blocks(2 * d + 0.1 * rest, d, torch.ones(8, dtype=torch.long))
    assert moments(step).best(0) == 1
    assert moments(step).unclamped(0) == pytest.approx(2, rel=0.05)
    assert spread(step, 0)["lambda"] > 1e-3


def test_the_mean_of_measurements_knows_a_bias_that_one_alone_does_not() -> None:
    """A small bias over a long horizon: one measurement says too much or too little, their mean nearly what is true."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(400):
        g = torch.randn(8, 4, generator=generator, dtype=torch.float64)
        d = 0.5 * g + 0.1 * torch.randn(8, 4, generator=generator, dtype=torch.float64) + 0.15
        found.append(moments(blocks(g, d, torch.ones(8, dtype=torch.long))))
    horizon, variance, covariance, bias = 10.0, 4 * 0.26 / 8, 4 * 0.5 / 8, 4 * 0.15**2
    truth = covariance / (variance + horizon * bias)
    alone = torch.tensor([one.best(horizon) for one in found])
    assert float(((alone - truth).abs() < 0.1).double().mean()) < 0.3
    assert mean(found).best(horizon) == pytest.approx(truth, rel=0.25)


def test_standard_errors_are_how_much_estimates_vary() -> None:
    x, y = data(4000)
    student = optimum(x, y)
    teacher = student + 0.1 * torch.randn(
        WIDTH, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    draws = [measured(student * 0.9, teacher, [16] * 8, seed) for seed in range(200)]
    for name, horizon in (("lambda", 20.0), ("reduction", 20.0)):
        values = []
        for draw in draws:
            found = moments(draw)
            best = found.best(horizon)
            values.append(best if name == "lambda" else found.corrected(best) / found.ce)
        errors = torch.tensor([spread(draw, horizon)[name] for draw in draws])
        assert float(errors.mean()) == pytest.approx(float(torch.tensor(values).std()), rel=0.4), name


def test_the_sketch_says_how_far_it_is_off() -> None:
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(6, 6000, generator=generator, dtype=torch.float64)
    counts = torch.full((6,), 4)
    exact = blocks(g, g, counts)
    assert sketch_error(exact) == 0
    found, stated = [], []
    for seed in range(100):
        made = Sketch({"w": g.shape[1]}, 199, seed)
        totals = made.empty(6)
        for row, values in zip(totals, g, strict=True):
            made.add(row, "w", values)
        sketched = blocks(totals, totals, counts, exact=False)
        found.append(moments(sketched).ce / moments(exact).ce - 1)
        stated.append(sketch_error(sketched))
    observed = float(torch.tensor(found).square().mean().sqrt())
    assert observed == pytest.approx(sum(stated) / len(stated), rel=0.25)
    # Five residuals are independent, so that it is less than that of a single norm.
    assert observed < (2 / 199) ** 0.5


def teacher_at(distance: float, best: Tensor) -> Tensor:
    direction = torch.randn(WIDTH, CLASSES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return best + distance * direction / direction.norm()


def excess(share: float, teacher: Tensor, best: Tensor, x: Tensor, y: Tensor) -> float:
    """Mean squared distance to the optimum of SGD with rate RATE, batch 10, corrected by ``share``."""
    generator, weights, total, steps = torch.Generator().manual_seed(5), best.clone(), 0.0, 3000
    for step in range(steps):
        chosen = torch.randint(len(x), (10,), generator=generator)
        noisy = residual(weights, x[chosen], y[chosen]) - share * residual(teacher, x[chosen], y[chosen])
        weights = weights - RATE * (x[chosen].T @ noisy / 10 + DECAY * (weights - share * teacher))
        if step >= 500:
            total += float((weights - best).square().sum()) / (steps - 500)
    return total


@pytest.mark.parametrize(
    ("distance", "low", "high"), [(0.0, 1.0, 1.0), (0.3, 0.6, 0.95), (1.0, 0.1, 0.5), (3.0, 0.0, 0.1)]
)
def test_predicted_lambda_is_near_that_of_sgd(distance: float, low: float, high: float) -> None:
    """Teachers ever farther from the optimum: λ falls from 1 to 0, and does about the best that any λ can."""
    x, y = data(2000)
    best = optimum(x, y)
    teacher = teacher_at(distance, best)
    predicted = of_a_step(best, teacher, x, y).best(1 + 1 / (RATE * CURVATURE))
    assert low <= predicted <= high
    losses = {share: excess(share, teacher, best, x, y) for share in (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, predicted)}
    assert losses[predicted] <= 1.15 * min(losses.values())
    assert losses[predicted] <= 1.001 * losses[0.0]


def of_a_step(weights: Tensor, teacher: Tensor, x: Tensor, y: Tensor) -> Moments:
    """Of batches of 10, where all the data are known: variances from 200 of them, the bias without noise."""
    gradients = [per_sample(at, x, y) + DECAY * at.flatten() for at in (weights, teacher)]
    ce, difference = (values.view(200, 10, -1).mean(1) for values in gradients)
    found = moments(Blocks(torch.full((200,), 10), ce / 200, difference / 200, True))
    bias = float(difference.mean(0).square().sum())
    return Moments(200 * found.ce, 200 * found.teacher, 200 * found.covariance, bias, found.cosine)
