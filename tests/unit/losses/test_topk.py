"""Top-k KL: the three tail conventions against loops, their limits, and a tail that fp32 subtraction would lose."""

import math

import numpy as np
import pytest
import torch

from distill.losses.divergence import forward_kl, reverse_kl
from distill.losses.topk import topk_forward_kl, topk_reverse_kl

V = 9
FUNCTIONS = {"forward": topk_forward_kl, "reverse": topk_reverse_kl}
every_direction = pytest.mark.parametrize("direction", FUNCTIONS)
every_tail = pytest.mark.parametrize("tail", ["bucket", "renormalise", "truncate"])


def _logits(*shape, seed=0):
    return 2 * torch.randn(*shape, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _reference(student, teacher, k, tail, topk_from, direction):
    """One position by loops: (value, the teacher's kept mass, the student's)."""
    s, t = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (student, teacher))
    order = sorted(range(len(s)), key=lambda v: -(t if topk_from == "teacher" else s)[v])
    ids = order[:k]
    p, q = (t, s) if direction == "forward" else (s, t)
    kept_p, kept_q = sum(p[v] for v in ids), sum(q[v] for v in ids)
    value = 0.0
    for v in ids:
        a, b = (p[v] / kept_p, q[v] / kept_q) if tail == "renormalise" else (p[v], q[v])
        value += a * math.log(a / b)
    rest_p, rest_q = sum(p[v] for v in order[k:]), sum(q[v] for v in order[k:])
    if tail == "bucket" and k < len(s):
        value += rest_p * math.log(rest_p / rest_q)
    return value, sum(t[v] for v in ids), sum(s[v] for v in ids)


@every_direction
@every_tail
@pytest.mark.parametrize("topk_from", ["teacher", "student"])
@pytest.mark.parametrize("k", [1, 4, V])
def test_equals_the_definition(direction, tail, topk_from, k):
    student, teacher = _logits(2, 3, seed=1), _logits(2, 3, seed=2)
    found = FUNCTIONS[direction](student, teacher, k, tail=tail, topk_from=topk_from)
    for i, j in np.ndindex(2, 3):
        expected = _reference(student[i, j].numpy(), teacher[i, j].numpy(), k, tail, topk_from, direction)
        assert [part[i, j].item() for part in found] == pytest.approx(expected, abs=1e-12)


@every_direction
@every_tail
@pytest.mark.parametrize("topk_from", ["teacher", "student"])
def test_gradients(direction, tail, topk_from):
    student, teacher = _logits(3, seed=1).requires_grad_(), _logits(3, seed=2).requires_grad_()

    def value(student, teacher):
        return FUNCTIONS[direction](student, teacher, 3, tail=tail, topk_from=topk_from).value

    assert torch.autograd.gradcheck(value, (student, teacher))


@every_direction
@every_tail
@pytest.mark.parametrize("k", [V, V + 5])
def test_k_of_the_whole_vocabulary_is_the_full_kl(direction, tail, k):
    student, teacher = _logits(5, seed=1).requires_grad_(), _logits(5, seed=2)
    found = FUNCTIONS[direction](student, teacher, k, tail=tail)
    expected = (forward_kl if direction == "forward" else reverse_kl)(student, teacher)
    torch.testing.assert_close(found.value, expected)
    torch.testing.assert_close(found.teacher_mass, torch.ones_like(expected))
    torch.testing.assert_close(
        torch.autograd.grad(found.value.sum(), student), torch.autograd.grad(expected.sum(), student)
    )


def test_the_conventions_disagree_as_published():
    """The teacher keeps .37, the student .185, in equal proportions inside and outside."""
    inside, outside = torch.tensor([0.5, 0.3, 0.2]), torch.full((100,), 0.01)
    teacher = torch.cat([0.37 * inside, 0.63 * outside]).log()
    student = torch.cat([0.185 * inside, 0.815 * outside]).log()
    assert forward_kl(student, teacher).item() == pytest.approx(0.0944, abs=3e-4)
    values = {tail: topk_forward_kl(student, teacher, 3, tail=tail) for tail in ("bucket", "renormalise", "truncate")}
    assert values["truncate"].value.item() == pytest.approx(0.2567, abs=3e-4)
    assert values["renormalise"].value.item() == pytest.approx(0.0, abs=1e-6)
    assert values["bucket"].value.item() == pytest.approx(0.0944, abs=3e-4)
    assert values["bucket"].teacher_mass.item() == pytest.approx(0.37, abs=1e-6)
    assert values["bucket"].student_mass.item() == pytest.approx(0.185, abs=1e-6)


@every_direction
def test_bucket_is_a_divergence_and_a_lower_bound_of_the_full_one(direction):
    student, teacher = _logits(50, seed=1), _logits(50, seed=2)
    full = (forward_kl if direction == "forward" else reverse_kl)(student, teacher)
    values = [FUNCTIONS[direction](student, teacher, k).value for k in range(1, V + 1)]
    for smaller, larger in zip(values, [*values[1:], full], strict=True):
        assert (smaller >= 0).all()
        assert (smaller <= larger + 1e-12).all()
    assert FUNCTIONS[direction](student, student, 3).value.abs().max() < 1e-15


@every_direction
def test_bucket_keeps_a_tail_smaller_than_fp32_resolves_next_to_one(direction):
    student = torch.tensor([[40.0, 1.0, 0.0, 2.0], [90.0, 1.0, 0.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[35.0, 0.0, 1.0, 0.5], [120.0, 0.0, 1.0, 0.5]])
    found = FUNCTIONS[direction](student, teacher, 1)
    (gradient,) = torch.autograd.grad(found.value.sum(), student)
    double = student.detach().double().requires_grad_()
    exact = FUNCTIONS[direction](double, teacher.double(), 1)
    (exact_gradient,) = torch.autograd.grad(exact.value.sum(), double)
    assert found.teacher_mass.tolist() == [1.0, 1.0]
    # 1 - Σ_kept is 0 here, so every one of these would be 0 or NaN.
    assert (exact_gradient[0, 1:].abs() > 1e-18).all()
    torch.testing.assert_close(gradient[:, 1:].double(), exact_gradient[:, 1:], rtol=1e-4, atol=1e-30)
    assert gradient.isfinite().all()


@every_direction
@every_tail
def test_a_tail_without_any_mass_gives_finite_gradients(direction, tail):
    student, teacher = _logits(2, seed=1), _logits(2, seed=2)
    student[:, 3:] = teacher[:, 3:] = -math.inf
    student.requires_grad_()
    for k in (3, 5):
        found = FUNCTIONS[direction](student, teacher, k, tail=tail).value
        full = (forward_kl if direction == "forward" else reverse_kl)(student, teacher)
        torch.testing.assert_close(found, full)
        (gradient,) = torch.autograd.grad(found.sum(), student)
        assert gradient.isfinite().all()
        assert (gradient[:, 3:] == 0).all()


def test_renormalising_over_tokens_that_one_model_rules_out_is_never_nan():
    student, teacher = _logits(1, seed=1).requires_grad_(), _logits(1, seed=2)
    teacher[0, student[0].detach().topk(3).indices] = -math.inf
    forward, reverse = (
        function(student, teacher, 3, tail="renormalise", topk_from="student").value for function in FUNCTIONS.values()
    )
    assert forward.item() == 0.0
    assert reverse.item() == math.inf
    assert torch.autograd.grad(forward.sum(), student)[0].isfinite().all()


def test_masses_carry_no_gradient():
    found = topk_reverse_kl(_logits(2, seed=1).requires_grad_(), _logits(2, seed=2).requires_grad_(), 3)
    assert found.value.requires_grad
    assert not found.teacher_mass.requires_grad
    assert not found.student_mass.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "`k` must be at least 1, but is 0"),
        ({"k": 2, "tail": "drop"}, "`tail` must be one of bucket, renormalise, truncate, but is 'drop'"),
        ({"k": 2, "topk_from": "both"}, "`topk_from` must be one of teacher, student, but is 'both'"),
    ],
)
@every_direction
def test_impossible_options_are_refused(direction, options, message):
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[direction](_logits(2), _logits(2), **options)


@every_direction
def test_disagreeing_shapes_are_refused(direction):
    with pytest.raises(ValueError, match=r"\[2, 9\] and \[3, 9\]"):
        FUNCTIONS[direction](_logits(2), _logits(3), 2)
