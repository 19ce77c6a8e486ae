"""The sampled-token estimator: its expectation by enumeration, the importance ratio, clipping."""

import math

import pytest
import torch

from distill.losses.divergence import reverse_kl
from distill.losses.policy import sampled_token

V = 6


def _log_probs(seed):
    logits = torch.randn(V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.log_softmax(-1)


@pytest.mark.parametrize("sampler", ["fresh", "stale"])
def test_expected_gradient_is_that_of_the_reverse_kl(sampler):
    logits = _log_probs(1).requires_grad_()
    student, teacher = logits.log_softmax(-1), _log_probs(2)
    sampler_logprobs = student.detach() if sampler == "fresh" else _log_probs(3)
    found = sampled_token(student, teacher, sampler_logprobs)
    expectation = (sampler_logprobs.exp() * found.value).sum()
    exact = reverse_kl(logits, teacher)
    torch.testing.assert_close(expectation, exact)
    torch.testing.assert_close(
        torch.autograd.grad(expectation, logits, retain_graph=True), torch.autograd.grad(exact, logits)
    )
    if sampler == "fresh":
        torch.testing.assert_close((student.exp() * found.k1).sum(), exact)


def test_value_and_gradient_by_hand():
    student = torch.tensor([0.5, 0.2]).log().requires_grad_()
    found = sampled_token(student, torch.tensor([0.25, 0.4]).log(), torch.tensor([0.5, 0.1]).log())
    torch.testing.assert_close(found.k1, torch.tensor([math.log(2), -math.log(2)]))
    torch.testing.assert_close(found.value, torch.tensor([math.log(2), -2 * math.log(2)]))
    found.value.sum().backward()
    torch.testing.assert_close(student.grad, torch.tensor([math.log(2), -2 * math.log(2)]))
    assert not found.k1.requires_grad
    assert found.clipped.tolist() == [0.0, 0.0]


def test_gradient_only_through_the_ratio():
    student = torch.tensor([-1.0], requires_grad=True)
    teacher = torch.tensor([-1.0], requires_grad=True)
    found = sampled_token(student, teacher, torch.tensor([-1.0]))
    found.value.sum().backward()
    assert student.grad.tolist() == [0.0]
    assert teacher.grad is None


def test_clip_limits_the_ratio_on_both_sides_and_reports_it():
    ratios = torch.tensor([0.1, 0.6, 1.0, 1.9, 30.0])
    student = (0.01 * ratios).log().requires_grad_()
    found = sampled_token(student, student.detach() - 1.0, torch.full((5,), 0.01).log(), ratio_clip=2.0)
    torch.testing.assert_close(found.value, torch.tensor([0.5, 0.6, 1.0, 1.9, 2.0]))
    assert found.clipped.tolist() == [1, 0, 0, 0, 1]
    found.value.sum().backward()
    torch.testing.assert_close(student.grad, torch.tensor([0.0, 0.6, 1.0, 1.9, 0.0]))


def test_a_clipped_ratio_beyond_fp32_has_a_finite_gradient():
    student = torch.tensor([-1.0], requires_grad=True)
    found = sampled_token(student, torch.tensor([-2.0]), torch.tensor([-200.0]), ratio_clip=10.0)
    found.value.sum().backward()
    assert found.value.item() == pytest.approx(10.0)
    assert student.grad.tolist() == [0.0]


def test_tokens_that_nobody_sampled_are_refused():
    with pytest.raises(ValueError, match=r"`sampler_logprobs` must be given for sampled_token.*on_policy"):
        sampled_token(torch.zeros(2), torch.zeros(2), None)


def test_disagreeing_shapes_and_impossible_clips_are_refused():
    with pytest.raises(ValueError, match=r"\[2\], \[2\] and \[3\]"):
        sampled_token(torch.zeros(2), torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="`ratio_clip` must be null or above 1, but is 1"):
        sampled_token(torch.zeros(2), torch.zeros(2), torch.zeros(2), ratio_clip=1.0)
