"""The objective: its terms, metrics and limits, and sums that do not depend on how positions are grouped."""

import dataclasses
import math
from typing import get_args

import pytest
import torch
from torch import nn

from distill.config import schema
from distill.errors import UserError
from distill.losses.divergence import log_probs, reverse_kl
from distill.losses.topk import Tail, TopKFrom, topk_reverse_kl
from distill.objective import Divergence, Objective
from distill.types import Signal

N, H, V = 19, 6, 13
DIVERGENCES = tuple(name for name in get_args(Divergence) if name != "custom")
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)


@dataclasses.dataclass
class Case:
    student: Signal
    teacher: Signal
    targets: torch.Tensor
    sampler: torch.Tensor
    head: nn.Linear

    def part(self, index):
        """The same models at some of the positions."""
        student = Signal(self.student.hidden[index], self.student.head)
        teacher = Signal(self.teacher.hidden[index], self.teacher.head)
        return Case(student, teacher, self.targets[index], self.sampler[index], self.head)

    def gradients(self):
        return {"hidden": self.student.hidden.grad, "head": self.head.weight.grad}


def _case(n=N, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    head, teacher_head = nn.Linear(H, V, bias=False, dtype=dtype), nn.Linear(H, V, bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.mul_(3)
        teacher_head.weight.mul_(3)
    hidden = torch.randn(n, H).to(dtype).requires_grad_()
    teacher_hidden, targets, sampler = torch.randn(n, H).to(dtype), torch.randint(V, (n,)), -2 * torch.rand(n)
    return Case(Signal(hidden, head), Signal(teacher_hidden, teacher_head), targets, sampler, head)


def _apply(objective, case):
    return objective(case.student, case.targets, case.teacher, case.sampler)


def _close(found, expected, tolerance=1e-6):
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= tolerance * gradient.norm(), name


def test_fields_defaults_and_choices_are_those_of_the_schema():
    theirs = {name: field.default for name, field in schema.Objective.model_fields.items()}
    ours = {field.name: field.default for field in dataclasses.fields(Objective)}
    assert ours == theirs
    for name, literal in (("divergence", Divergence), ("tail", Tail), ("topk_from", TopKFrom)):
        assert get_args(literal) == get_args(schema.Objective.model_fields[name].annotation)
    assert Objective(**schema.Objective().model_dump()) == Objective()


@every_divergence
def test_loss_is_the_weighted_sum_of_its_terms(divergence):
    case = _case()
    loss, metrics = _apply(Objective(divergence=divergence, label_weight=0.3, logit_weight=0.7), case)
    assert loss.item() == pytest.approx(0.3 * metrics["ce"].item() + 0.7 * metrics[divergence].item(), rel=1e-5)
    assert loss.item() == pytest.approx(metrics["loss"].item())
    ce = nn.functional.cross_entropy(case.head(case.student.hidden), case.targets, reduction="sum")
    assert metrics["ce"].item() == pytest.approx(ce.item(), rel=1e-5)


@every_divergence
@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "label_weight": 0.5}])
def test_chunks_change_neither_loss_nor_metrics_nor_gradients(divergence, options):
    whole, chunked = _case(), _case()
    for case, chunk_size in ((whole, 1000), (chunked, 4)):
        loss, metrics = _apply(Objective(divergence=divergence, k=3, chunk_size=chunk_size, **options), case)
        loss.backward()
        case.metrics = {name: value.item() for name, value in metrics.items()}
    assert chunked.metrics == pytest.approx(whole.metrics, rel=1e-5)
    _close(chunked.gradients(), whole.gradients())


@every_divergence
def test_any_grouping_of_the_window_gives_the_same_gradient(divergence):
    """Sums of micro-batches over one window count: the split must not matter, ragged or empty."""
    objective = Objective(divergence=divergence, label_weight=0.5, k=3)
    whole, split = _case(), _case()
    (_apply(objective, whole)[0] / N).backward()
    total = 0.0
    for index in torch.arange(N).split([1, 0, 11, 7]):
        loss, _ = _apply(objective, split.part(index))
        (loss / N).backward()
        total += loss.item() / N
    assert total == pytest.approx(_apply(objective, whole)[0].item() / N, rel=1e-5)
    _close(split.gradients(), whole.gradients())


@every_divergence
def test_no_position_is_zero_with_a_graph_and_finite_gradients(divergence):
    case = _case(0)
    loss, metrics = _apply(Objective(divergence=divergence, label_weight=0.5, ratio_clip=2.0), case)
    loss.backward()
    assert loss.item() == 0.0
    assert {value.item() for value in metrics.values()} == {0.0}
    assert case.student.hidden.grad.shape == (0, H)
    assert (case.head.weight.grad == 0).all()


@every_divergence
def test_is_zero_when_the_teacher_is_the_student(divergence):
    case = _case()
    case.teacher = Signal(case.student.hidden.detach(), case.student.head)
    loss, metrics = _apply(Objective(divergence=divergence), case)
    loss.backward()
    assert loss.abs().item() <= 1e-5
    assert case.head.weight.grad.norm() <= 1e-5
    assert metrics["teacher_nll"].item() == pytest.approx(metrics["ce"].item())


def test_metrics_are_detached_fp32_sums_under_their_documented_names():
    always = {"loss", "ce", "student_entropy"}
    expected = {name: always | {name, "teacher_nll"} for name in DIVERGENCES}
    for name in ("topk_forward_kl", "topk_reverse_kl"):
        expected[name] |= {"kept_mass", "student_kept_mass"}
    expected["sampled_token"] |= {"k1", "clip_share"}
    for name, keys in expected.items():
        _, metrics = _apply(Objective(divergence=name, ratio_clip=1.5), _case(dtype=torch.float64))
        assert metrics.keys() == keys
        for value in metrics.values():
            assert value.shape == ()
            assert value.dtype == torch.float32
            assert not value.requires_grad
    case = _case()
    _, metrics = Objective(label_weight=1.0, logit_weight=0.0)(case.student, case.targets, None, None)
    assert metrics.keys() == always


def test_metric_values():
    case = _case(dtype=torch.float64)
    student, teacher = (log_probs(s.head(s.hidden)).detach() for s in (case.student, case.teacher))
    rows = torch.arange(N)
    own, taught = student[rows, case.targets], teacher[rows, case.targets]
    _, metrics = _apply(Objective(), case)
    assert metrics["reverse_kl"].item() == pytest.approx(reverse_kl(student, teacher).sum().item(), rel=1e-6)
    assert metrics["student_entropy"].item() == pytest.approx(-(student.exp() * student).sum().item(), rel=1e-6)
    assert metrics["teacher_nll"].item() == pytest.approx(-taught.sum().item(), rel=1e-6)
    _, metrics = _apply(Objective(divergence="sampled_token", ratio_clip=4.0), case)
    clipped = (own - case.sampler).abs() > math.log(4)
    assert 0 < clipped.sum() < N
    assert metrics["clip_share"].item() == clipped.sum().item()
    assert metrics["k1"].item() == pytest.approx((own - taught).sum().item(), rel=1e-6)
    _, metrics = _apply(Objective(divergence="topk_reverse_kl", k=3, topk_from="student"), case)
    found = topk_reverse_kl(student, teacher, 3, topk_from="student")
    assert metrics["topk_reverse_kl"].item() == pytest.approx(found.value.sum().item(), rel=1e-6)
    assert metrics["kept_mass"].item() == pytest.approx(found.teacher_mass.sum().item(), rel=1e-6)
    assert metrics["student_kept_mass"].item() == pytest.approx(found.student_mass.sum().item(), rel=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_temperature_softens_both_models_in_the_divergence_only(scaled):
    case, t = _case(dtype=torch.float64), 3.0
    objective = Objective(label_weight=0.5, temperature=t, scale_by_temperature_squared=scaled)
    loss, metrics = _apply(objective, case)
    student, teacher = case.head(case.student.hidden), case.teacher.head(case.teacher.hidden)
    divergence = reverse_kl(student / t, teacher / t).sum()
    ce = nn.functional.cross_entropy(student, case.targets, reduction="sum")
    expected = 0.5 * ce + (t * t if scaled else 1.0) * divergence
    torch.testing.assert_close(loss, expected)
    assert metrics["reverse_kl"].item() == pytest.approx(divergence.item(), rel=1e-6)
    found, wanted = (torch.autograd.grad(value, case.student.hidden) for value in (loss, expected))
    torch.testing.assert_close(found, wanted)
    _, at_one = _apply(Objective(label_weight=0.5), case)
    for name in ("ce", "student_entropy", "teacher_nll"):
        assert metrics[name].item() == pytest.approx(at_one[name].item(), rel=1e-6)


def test_temperature_squared_keeps_the_gradient_at_its_size():
    """KL at temperature T shrinks like 1/T²: unscaled by default, near constant with the option."""
    norms = {}
    for scaled in (False, True):
        for t in (50.0, 100.0):
            case = _case(dtype=torch.float64)
            options = {"temperature": t, "scale_by_temperature_squared": scaled}
            _apply(Objective(divergence="forward_kl", **options), case)[0].backward()
            norms[scaled, t] = case.student.hidden.grad.norm().item()
    assert norms[False, 50.0] / norms[False, 100.0] == pytest.approx(4, rel=0.05)
    assert norms[True, 50.0] / norms[True, 100.0] == pytest.approx(1, rel=0.05)


@every_divergence
def test_bf16_models_are_compared_in_fp32(divergence):
    """Against the same bf16 logits in fp64: only fp32 rounding is left."""
    case = _case(64, torch.bfloat16)
    with torch.no_grad():
        case.teacher.head.weight.copy_(case.head.weight)
    case.teacher = Signal((case.student.hidden + 0.02 * torch.randn(64, H)).bfloat16().detach(), case.teacher.head)
    objective = Objective(divergence=divergence, k=3, chunk_size=10)
    _, metrics = _apply(objective, case)
    exact = Case(
        Signal(case.student.hidden.detach(), lambda hidden: case.head(hidden).double()),
        Signal(case.teacher.hidden, lambda hidden: case.teacher.head(hidden).double()),
        case.targets,
        case.sampler.double(),
        case.head,
    )
    _, expected = _apply(objective, exact)
    for name, value in expected.items():
        assert metrics[name].item() / 64 == pytest.approx(value.item() / 64, rel=1e-5, abs=1e-6)


def test_a_masked_target_does_not_poison_a_loss_without_labels():
    case = _case()
    mask = torch.zeros(V)
    mask[case.targets[0]] = -math.inf
    case.student = Signal(case.student.hidden, lambda hidden: case.head(hidden) + mask)
    case.teacher = Signal(case.teacher.hidden, lambda hidden, head=case.teacher.head: head(hidden) + mask)
    for divergence in set(DIVERGENCES) - {"sampled_token"}:
        loss, metrics = _apply(Objective(divergence=divergence), case)
        loss.backward()
        assert loss.isfinite()
        assert metrics["student_entropy"].isfinite()
        assert metrics["ce"].isinf()
        assert case.student.hidden.grad.isfinite().all()


def test_only_the_student_receives_gradients():
    case = _case()
    _apply(Objective(), case)[0].backward()
    assert case.teacher.head.weight.grad is None


def test_a_teacher_without_weight_is_not_consulted():
    case = _case()
    case.teacher = Signal(case.teacher.hidden, lambda hidden: pytest.fail("the teacher's head was called"))
    loss, metrics = _apply(Objective(label_weight=2.0, logit_weight=0.0), case)
    assert loss.item() == pytest.approx(2 * metrics["ce"].item())


def test_what_is_needed_and_missing_is_named():
    case = _case()
    assert Objective().needs_teacher
    assert not Objective(label_weight=1.0, logit_weight=0.0).needs_teacher
    with pytest.raises(UserError, match=r"`objective.logit_weight` must be 0 when there is no teacher, but is 1.0"):
        Objective()(case.student, case.targets, None, None)
    objective = Objective(divergence="sampled_token")
    with pytest.raises(UserError, match="`sampler_logprobs` must be given for sampled_token"):
        objective(case.student, case.targets, case.teacher, None)
    case.teacher = Signal(case.teacher.hidden, nn.Linear(H, V + 1))
    with pytest.raises(ValueError, match=rf"same shape \[..., V\], but are \[{N}, {V}\] and \[{N}, {V + 1}\]"):
        _apply(Objective(), case)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"divergence": "jsd", "beta": 0.0}, "beta"),
        ({"divergence": "jsd", "beta": 1.0}, "beta"),
        ({"divergence": "skew_forward_kl", "alpha": 1.0}, "alpha"),
        ({"divergence": "skew_reverse_kl", "alpha": -0.1}, "alpha"),
        ({"divergence": "kl"}, "divergence"),
        ({"label_weight": -1.0}, "label_weight"),
        ({"logit_weight": -1.0}, "logit_weight"),
        ({"logit_weight": 0.0}, "logit_weight"),
        ({"k": 0}, "k"),
        ({"tail": "drop"}, "tail"),
        ({"topk_from": "both"}, "topk_from"),
        ({"ratio_clip": 1.0}, "ratio_clip"),
        ({"temperature": 0.0}, "temperature"),
        ({"chunk_size": 0}, "chunk_size"),
    ],
)
def test_impossible_values_are_refused_by_key(options, key):
    with pytest.raises(UserError, match=rf"`objective\.{key}` must be .*, but is {options[key]!r}\."):
        Objective(**options)
    assert Objective(beta=0.0, alpha=1.0).divergence == "reverse_kl"
    assert not Objective(divergence="jsd", beta=0.0, label_weight=1.0, logit_weight=0.0).needs_teacher
