"""Divergences against loops written from the definitions: gradients, known values, masked vocabularies."""

import math

import numpy as np
import pytest
import torch

from distill.losses.divergence import (
    forward_kl,
    jsd,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    total_variation,
)

V = 7
BETA, ALPHA = 0.3, 0.2


def _softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _kl(p, q):
    total = 0.0
    for a, b in zip(p, q, strict=True):
        if a > 0:
            total += a * (math.log(a) - math.log(b)) if b > 0 else math.inf
    return total


def _jsd(s, t, beta=BETA):
    m = [beta * a + (1 - beta) * b for a, b in zip(t, s, strict=True)]
    return beta * _kl(t, m) + (1 - beta) * _kl(s, m)


CASES = {
    "forward_kl": (forward_kl, lambda s, t: _kl(t, s)),
    "reverse_kl": (reverse_kl, lambda s, t: _kl(s, t)),
    "jsd": (lambda s, t: jsd(s, t, BETA), _jsd),
    "skew_forward_kl": (
        lambda s, t: skew_forward_kl(s, t, ALPHA),
        lambda s, t: _kl(t, [ALPHA * a + (1 - ALPHA) * b for a, b in zip(t, s, strict=True)]),
    ),
    "skew_reverse_kl": (
        lambda s, t: skew_reverse_kl(s, t, ALPHA),
        lambda s, t: _kl(s, [(1 - ALPHA) * a + ALPHA * b for a, b in zip(t, s, strict=True)]),
    ),
    "total_variation": (total_variation, lambda s, t: 0.5 * sum(abs(a - b) for a, b in zip(s, t, strict=True))),
}
every_divergence = pytest.mark.parametrize("name", CASES)


def _logits(*shape, seed=0, dtype=torch.float64):
    return 2 * torch.randn(*shape, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@every_divergence
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_equals_the_definition_at_every_position(name, dtype, tolerance):
    divergence, reference = CASES[name]
    student, teacher = _logits(2, 5, seed=1), _logits(2, 5, seed=2)
    found = divergence(student.to(dtype), teacher.to(dtype))
    assert found.shape == (2, 5)
    assert found.dtype == dtype
    for i, j in np.ndindex(2, 5):
        expected = reference(_softmax(student[i, j].numpy()), _softmax(teacher[i, j].numpy()))
        assert found[i, j].item() == pytest.approx(expected, abs=tolerance)


@every_divergence
def test_gradients_of_both_arguments(name):
    student, teacher = _logits(3, seed=1).requires_grad_(), _logits(3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(CASES[name][0], (student, teacher))


@every_divergence
def test_is_zero_at_equality_and_positive_elsewhere(name):
    divergence, _ = CASES[name]
    logits = _logits(100, dtype=torch.float32).requires_grad_()
    at_equality = divergence(logits, logits.detach() + 3.0)
    assert at_equality.abs().max() <= 1e-6
    assert (divergence(logits, _logits(100, seed=5, dtype=torch.float32)) > 0.01).all()
    assert (divergence(logits, logits.detach() + 1e-3 * _logits(100, seed=5, dtype=torch.float32)) >= -1e-6).all()


@every_divergence
def test_normalised_skips_the_softmax_and_changes_nothing(name):
    options = {"jsd": {"beta": BETA}, "skew_forward_kl": {"alpha": ALPHA}, "skew_reverse_kl": {"alpha": ALPHA}}
    function = globals()[name]
    student, teacher = _logits(4, seed=1), _logits(4, seed=2)
    given = [logits.log_softmax(-1) for logits in (student, teacher)]
    expected = function(student, teacher, **options.get(name, {}))
    torch.testing.assert_close(function(*given, **options.get(name, {}), normalised=True), expected)
    assert not torch.allclose(function(student, teacher, **options.get(name, {}), normalised=True), expected)


@every_divergence
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_vocabulary_masked_in_both_models_equals_the_smaller_one(name, dtype):
    divergence, _ = CASES[name]
    student, teacher = _logits(4, seed=1, dtype=dtype), _logits(4, seed=2, dtype=dtype)
    student[:, 5:] = teacher[:, 5:] = -math.inf
    student.requires_grad_()
    found = divergence(student, teacher)
    torch.testing.assert_close(found, divergence(student[:, :5], teacher[:, :5]))
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert gradient.isfinite().all()
    assert (gradient[:, 5:] == 0).all()


@every_divergence
@pytest.mark.parametrize("masked", ["student", "teacher"])
def test_a_vocabulary_masked_in_one_model_equals_the_definition(name, masked):
    divergence, reference = CASES[name]
    student, teacher = _logits(seed=1), _logits(seed=2)
    (student if masked == "student" else teacher)[5:] = -math.inf
    student.requires_grad_()
    found = divergence(student, teacher)
    expected = reference(_softmax(student.detach().numpy()), _softmax(teacher.numpy()))
    assert found.item() == pytest.approx(expected)
    infinite = {"forward_kl": "student", "reverse_kl": "teacher"}.get(name) == masked
    assert found.isinf().item() == infinite
    if not infinite:
        (gradient,) = torch.autograd.grad(found, student)
        assert gradient.isfinite().all()


@every_divergence
def test_extreme_logits_give_finite_gradients(name):
    student = torch.tensor([[200.0, 0.0, -200.0], [0.0, 0.0, 1e4]], requires_grad=True)
    teacher = torch.tensor([[-200.0, 0.0, 200.0], [1e4, 0.0, 0.0]])
    found = CASES[name][0](student, teacher)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert found.isfinite().all()
    assert gradient.isfinite().all()


@every_divergence
def test_a_probability_that_underflows_counts_as_zero(name):
    """0·inf again: a token that one model finds too unlikely for fp32 and the other rules out."""
    unlikely, masked = torch.tensor([0.0, -300.0]), torch.tensor([0.0, -math.inf])
    for student, teacher in ((unlikely, masked), (masked, unlikely)):
        student = student.clone().requires_grad_()
        found = CASES[name][0](student, teacher)
        (gradient,) = torch.autograd.grad(found, student)
        assert found.item() == pytest.approx(0.0, abs=1e-7)
        assert gradient.abs().max() < 1e-7


@every_divergence
def test_disagreeing_shapes_are_refused_with_both_named(name):
    with pytest.raises(ValueError, match=r"\[2, 7\] and \[2, 6\]"):
        CASES[name][0](_logits(2), _logits(2)[:, :6])


def test_values_worked_out_by_hand():
    student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    assert forward_kl(student, teacher).item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert reverse_kl(student, teacher).item() == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5))
    assert total_variation(student, teacher).item() == pytest.approx(0.4)
    apart = torch.tensor([0.0, -math.inf]), torch.tensor([-math.inf, 0.0])
    assert jsd(*apart, 0.5).item() == pytest.approx(math.log(2))
    assert skew_forward_kl(*apart, 0.1).item() == pytest.approx(math.log(10))
    assert skew_reverse_kl(*apart, 0.1).item() == pytest.approx(math.log(10))


def test_jsd_goes_to_zero_linearly_at_both_ends():
    student, teacher = _logits(seed=1), _logits(seed=2)
    forward, reverse = forward_kl(student, teacher).item(), reverse_kl(student, teacher).item()
    for beta in (1e-2, 1e-4, 1e-6):
        assert jsd(student, teacher, beta).item() / beta == pytest.approx(forward, rel=100 * beta)
        assert jsd(student, teacher, 1 - beta).item() / beta == pytest.approx(reverse, rel=100 * beta)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_jsd_refuses_its_ends_and_names_the_divergences_meant(beta):
    with pytest.raises(ValueError, match=r"`beta` must be strictly between 0 and 1 .*forward_kl or reverse_kl"):
        jsd(_logits(1), _logits(1), beta)


def test_skew_kl_is_the_plain_kl_at_zero_and_refused_at_one():
    student, teacher = _logits(3, seed=1), _logits(3, seed=2)
    student[:, 6] = teacher[:, 6] = -math.inf
    student.requires_grad_()
    for skew, plain in ((skew_forward_kl, forward_kl), (skew_reverse_kl, reverse_kl)):
        found, expected = skew(student, teacher, 0.0), plain(student, teacher)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found.sum(), student), torch.autograd.grad(expected.sum(), student)
        )
        for alpha in (1.0, -0.1):
            with pytest.raises(ValueError, match="`alpha` must be at least 0 and below 1"):
                skew(student, teacher, alpha)


def test_bf16_logits_are_normalised_in_fp32():
    """The error of a bf16 log-softmax is larger than the divergence; ours is at fp32 rounding."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(64, 4096, generator=generator)
    teacher = student + 0.1 * torch.randn(64, 4096, generator=generator)
    student, teacher = student.bfloat16(), teacher.bfloat16()
    exact = reverse_kl(student.double(), teacher.double())
    assert 0.003 < exact.mean() < 0.007
    assert (reverse_kl(student, teacher) - exact).abs().max() < 2e-6
    log_s, log_t = student.log_softmax(-1), teacher.log_softmax(-1)
    in_bf16 = (log_s.exp() * (log_s - log_t)).double().sum(-1)
    assert (in_bf16 - exact).abs().max() > 0.005
