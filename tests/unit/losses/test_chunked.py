"""The fused head: chunks change nothing but the memory, whatever the head is."""

import warnings
import weakref

import pytest
import torch
from torch import nn

from distill.losses.chunked import chunked_sum
from distill.losses.divergence import log_probs, reverse_kl
from distill.types import Signal

N, H, V = 23, 5, 11


def _loss(student, teacher, targets, sampler):
    ce = -log_probs(student).gather(-1, targets[:, None]).squeeze(-1)
    value = ce if teacher is None else ce + reverse_kl(student, teacher)
    return value if sampler is None else value * sampler, {"ce": ce.detach(), "ones": torch.ones(len(targets))}


class _Model(nn.Module):
    """Embedding, one layer, and a head that may be tied to the embedding; the head records the rows of each call."""

    def __init__(self, tied, seed=0, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(V, H, dtype=dtype)
        self.layer = nn.Linear(H, H, dtype=dtype)
        self.lm_head = nn.Linear(H, V, bias=not tied, dtype=dtype)
        if tied:
            self.lm_head.weight = self.embedding.weight
        self.rows = []

    def head(self, hidden):
        self.rows.append(len(hidden))
        return self.lm_head(hidden)

    def signal(self, ids):
        return Signal(self.layer(self.embedding(ids)).tanh(), self.head)


def _ids(n=N, seed=0):
    return torch.randint(V, (n,), generator=torch.Generator().manual_seed(seed))


def _run(chunk_size, tied=True, n=N, dtype=torch.float64, sampler=True):
    model, teacher = _Model(tied, dtype=dtype), _Model(False, seed=1, dtype=dtype)
    weights = torch.linspace(0.5, 2.0, n, dtype=dtype) if sampler else None
    loss, metrics = chunked_sum(
        _loss, model.signal(_ids(n)), teacher.signal(_ids(n)), _ids(n, seed=1), weights, chunk_size
    )
    loss.backward()
    return loss.detach(), metrics, model, teacher


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk_size", [1, 7, 22, 23, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_equals_one_pass_over_everything(tied, chunk_size, dtype, tolerance):
    model, teacher = _Model(tied, dtype=dtype), _Model(False, seed=1, dtype=dtype)
    targets, weights = _ids(seed=1), torch.linspace(0.5, 2.0, N, dtype=dtype)
    student, taught = model.signal(_ids()), teacher.signal(_ids())
    values, metrics = _loss(student.head(student.hidden), taught.head(taught.hidden).detach(), targets, weights)
    values.sum().backward()
    loss, sums, chunked, _ = _run(chunk_size, tied, dtype=dtype)
    # fp32 sums of ~20 terms in another order: relative to the total.
    assert loss.item() == pytest.approx(values.sum().item(), rel=tolerance)
    assert {name: value.item() for name, value in sums.items()} == pytest.approx(
        {name: value.sum().item() for name, value in metrics.items()}, rel=1e-6
    )
    for ours, plain in zip(chunked.parameters(), model.parameters(), strict=True):
        error = (ours.grad - plain.grad).norm() / plain.grad.norm()
        assert error <= tolerance


@pytest.mark.parametrize("chunk_size", [1, 7, 22, 23])
def test_heads_never_see_more_rows_than_a_chunk(chunk_size):
    _, _, model, teacher = _run(chunk_size)
    assert max(model.rows + teacher.rows) <= chunk_size
    assert sum(model.rows) == sum(teacher.rows) == N


@pytest.mark.parametrize("chunk_size", [4, N])
def test_no_logits_wait_for_the_backward_pass(chunk_size):
    made = []

    def spy(student, teacher, targets, sampler):
        made.extend((weakref.ref(student), weakref.ref(teacher)))
        return _loss(student, teacher, targets, sampler)

    model, teacher = _Model(False), _Model(False, seed=1)
    loss, _ = chunked_sum(spy, model.signal(_ids()), teacher.signal(_ids()), _ids(seed=1), None, chunk_size)
    assert loss.requires_grad
    assert len(made) == 2 * -(-N // chunk_size)
    assert all(reference() is None for reference in made)


def test_the_head_is_not_asked_in_the_backward_pass():
    model = _Model(False)
    loss, _ = chunked_sum(_loss, model.signal(_ids()), None, _ids(seed=1), None, 7)
    asked = list(model.rows)
    loss.backward()
    assert model.rows == asked


def test_a_second_backward_pass_is_refused():
    loss, _ = chunked_sum(_loss, _Model(False).signal(_ids()), None, _ids(seed=1), None, 7)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


def test_a_head_may_be_any_function_of_any_parameters():
    scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    weight = torch.nn.Parameter(torch.randn(V, H, dtype=torch.float64))
    hidden = torch.randn(N, H, dtype=torch.float64, requires_grad=True)

    def head(states):
        return (states @ weight.t()) * scale.exp()

    loss, _ = chunked_sum(_loss, Signal(hidden, head), None, _ids(seed=1), None, 7)
    loss.backward()
    found = [scale.grad, weight.grad, hidden.grad]
    expected = torch.autograd.grad(_loss(head(hidden), None, _ids(seed=1), None)[0].sum(), [scale, weight, hidden])
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_the_teacher_gets_no_gradient():
    for chunk_size in (7, 100):
        _, _, model, teacher = _run(chunk_size)
        assert all(parameter.grad is None for parameter in teacher.parameters())
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_half_precision_logits_are_upcast_chunk_by_chunk():
    seen = set()

    def spy(student, teacher, targets, sampler):
        seen.update((student.dtype, teacher.dtype))
        return _loss(student, teacher, targets, sampler)

    model, teacher = _Model(True, dtype=torch.bfloat16), _Model(False, seed=1, dtype=torch.bfloat16)
    loss, metrics = chunked_sum(spy, model.signal(_ids()), teacher.signal(_ids()), _ids(seed=1), None, 7)
    loss.backward()
    assert seen == {torch.float32}
    assert loss.dtype == torch.float32
    assert {value.dtype for value in metrics.values()} == {torch.float32}
    assert model.lm_head.weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [True, False])
def test_no_position_is_exactly_zero_with_a_graph_to_every_parameter(tied):
    loss, metrics, model, _ = _run(7, tied, n=0)
    assert loss.item() == 0.0
    assert {value.item() for value in metrics.values()} == {0.0}
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert (parameter.grad == 0).all()


def test_no_position_is_zero_even_when_the_head_holds_infinities():
    model = _Model(False)
    with torch.no_grad():
        model.lm_head.bias[3] = -torch.inf
        model.lm_head.weight[4] = torch.inf
    loss, _ = chunked_sum(_loss, model.signal(_ids(0)), None, _ids(0), None, 7)
    loss.backward()
    assert loss.item() == 0.0
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


def test_recomputation_keeps_the_autocast_of_the_forward_pass():
    gradients = []
    for chunk_size in (7, N):
        model, teacher = _Model(True, dtype=torch.float32), _Model(False, seed=1, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = chunked_sum(_loss, model.signal(_ids()), teacher.signal(_ids()), _ids(seed=1), None, chunk_size)
        assert loss.dtype == torch.float32
        loss.backward()
        gradients.append(model.lm_head.weight.grad)
    # Each chunk's weight gradient is rounded to bf16 once.
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[1].norm()


def test_works_without_grad_and_without_warning():
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        model = _Model(True)
        loss, _ = chunked_sum(_loss, model.signal(_ids()), None, _ids(seed=1), None, 7)
    assert not loss.requires_grad
    expected, _ = chunked_sum(_loss, model.signal(_ids()), None, _ids(seed=1), None, N)
    torch.testing.assert_close(loss, expected.detach())


@pytest.mark.parametrize("part", ["targets", "teacher.hidden", "sampler_logprobs"])
def test_parts_that_disagree_about_the_positions_are_refused(part):
    sizes = {"targets": N, "teacher.hidden": N, "sampler_logprobs": N} | {part: N - 1}
    with pytest.raises(ValueError, match=f"same number of positions N, but have: student.hidden {N}.*{part} {N - 1}"):
        chunked_sum(
            _loss,
            _Model(True).signal(_ids()),
            _Model(True).signal(_ids(sizes["teacher.hidden"])),
            _ids(sizes["targets"]),
            torch.zeros(sizes["sampler_logprobs"]),
            7,
        )
