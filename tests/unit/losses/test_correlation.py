"""Correlations against numpy on ranks and logits; what neither sees; masked vocabularies, flat logits."""

import math

import numpy as np
import pytest
import torch

from distill.errors import UserError
from distill.losses.correlation import pearson, spearman

V, K, SOFTNESS = 11, 6, 0.3


def _logits(*shape, seed=0, dtype=torch.float64):
    return 2 * torch.randn(*shape, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _spearman(student, teacher):
    """Rank correlation among the teacher's K likeliest, by its definition."""
    kept = np.argsort(-teacher)[:K]
    ranks = [np.argsort(np.argsort(logits[kept])) for logits in (student, teacher)]
    return 1 - np.corrcoef(*ranks)[0, 1]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_pearson_equals_the_definition_at_every_position(dtype, tolerance):
    student, teacher = _logits(2, 5, seed=1), _logits(2, 5, seed=2)
    found = pearson(student.to(dtype), teacher.to(dtype))
    assert found.dtype == dtype
    for place in np.ndindex(2, 5):
        expected = 1 - np.corrcoef(student[place].numpy(), teacher[place].numpy())[0, 1]
        assert found[place].item() == pytest.approx(expected, abs=tolerance)


def test_spearman_tends_to_the_correlation_of_ranks():
    student, teacher = _logits(2, 5, seed=1), _logits(2, 5, seed=2)
    found = spearman(student, teacher, K, 1e-5)
    for place in np.ndindex(2, 5):
        assert found[place].item() == pytest.approx(_spearman(student[place].numpy(), teacher[place].numpy()), abs=1e-9)
    assert not torch.allclose(spearman(student, teacher, K, 1.0), found, atol=1e-2), "soft ranks are no ranks"


def test_spearman_equals_the_definition_of_soft_ranks():
    student, teacher = _logits(3, seed=1), _logits(3, seed=2)
    for found, s, t in zip(spearman(student, teacher, K, SOFTNESS), student.numpy(), teacher.numpy(), strict=True):
        kept, ranks = np.argsort(-t)[:K], []
        for logits in (s[kept], t[kept]):
            z = (logits - logits.mean()) / logits.std()
            ranks.append([sum(1 / (1 + math.exp((b - a) / SOFTNESS)) for b in z) for a in z])
        assert found.item() == pytest.approx(1 - np.corrcoef(*ranks)[0, 1], abs=1e-12)


@pytest.mark.parametrize("function", [pearson, lambda s, t: spearman(s, t, K, SOFTNESS)])
def test_gradients_of_both_arguments(function):
    student, teacher = _logits(3, seed=1).requires_grad_(), _logits(3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(function, (student, teacher))


@pytest.mark.parametrize("function", [pearson, lambda s, t: spearman(s, t, K, SOFTNESS)])
def test_is_zero_for_logits_that_differ_in_scale_and_offset_alone_and_two_for_their_opposite(function):
    logits = _logits(20, dtype=torch.float32)
    assert function(logits, 3 * logits + 5).abs().max() <= 1e-5
    assert function(-logits, logits) == pytest.approx(2, abs=1e-5)
    assert (function(_logits(20, seed=5, dtype=torch.float32), logits) > 0.01).all()


def test_spearman_sees_the_order_alone_and_pearson_more():
    teacher = torch.arange(V, dtype=torch.float64)
    bent = teacher**3
    assert spearman(bent, teacher, V, 1e-4).item() == pytest.approx(0, abs=1e-6)
    assert pearson(bent, teacher) > 0.05


def test_spearman_knows_the_likeliest_tokens_of_the_teacher_alone():
    student, teacher = _logits(4, seed=1), _logits(4, seed=2)
    rest = teacher.topk(V - K, largest=False).indices
    # Smallest stays smallest, so that the tokens kept are the same.
    moved = teacher.scatter_add(-1, rest, -_logits(4, seed=3).abs()[:, : V - K])
    torch.testing.assert_close(spearman(student, moved, K, SOFTNESS), spearman(student, teacher, K, SOFTNESS))
    torch.testing.assert_close(spearman(student, teacher, 10 * V, SOFTNESS), spearman(student, teacher, V, SOFTNESS))


@pytest.mark.parametrize("function", [pearson, lambda s, t: spearman(s, t, V, SOFTNESS)])
@pytest.mark.parametrize("masked", ["student", "teacher", "both"])
def test_a_token_that_a_model_has_masked_counts_in_neither(function, masked):
    student, teacher = _logits(4, seed=1), _logits(4, seed=2)
    expected = function(student[:, :8], teacher[:, :8])
    for name, logits in (("student", student), ("teacher", teacher)):
        if masked in (name, "both"):
            logits[:, 8:] = -math.inf
    student.requires_grad_()
    found = function(student, teacher)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("function", [pearson, lambda s, t: spearman(s, t, K, SOFTNESS)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_that_are_all_the_same_correlate_with_nothing_and_have_no_gradient(function, dtype):
    student = torch.full((2, V), 0.3, dtype=dtype, requires_grad=True)
    found = function(student, _logits(2, dtype=dtype))
    assert (found == 1).all()
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert (gradient == 0).all()
    assert (function(_logits(2, dtype=dtype), torch.zeros(2, V, dtype=dtype)) == 1).all()


def test_small_logits_of_a_large_vocabulary_are_not_all_the_same():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 200_000, generator=generator) for _ in range(2))
    student = (0.02 * student + 0.02 * teacher).requires_grad_()
    found = pearson(student, teacher)
    torch.testing.assert_close(found, pearson(student.double(), teacher.double()).float(), atol=1e-3, rtol=0)
    assert found.max() < 0.4
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert gradient.norm() > 0


def test_following_the_gradient_restores_the_order():
    teacher, student = _logits(seed=2), _logits(seed=1).requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        spearman(student, teacher, V, 0.2).backward()
        optimizer.step()
    assert student.argsort().tolist() == teacher.argsort().tolist()


@pytest.mark.parametrize(("options", "words"), [((0, 0.1), "`k` must be"), ((3, 0.0), "`softness` must be above 0")])
def test_bad_options_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        spearman(_logits(2), _logits(2), *options)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="same shape"):
        pearson(_logits(2), _logits(3))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_model_shows_and_a_masked_token_does_not(broken: float) -> None:
    student, teacher = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    teacher[1] = broken
    for value in (pearson(student, teacher), spearman(student, teacher, 4, 0.1)):
        assert value.isnan().tolist() == [False, True, False]
    teacher[1] = -math.inf
    teacher[1, :3] = torch.tensor([0.0, 1.0, 2.0])
    assert bool(pearson(student, teacher).isfinite().all())
