"""Several teachers: the mixture against its definition in float64, and each row taught by its own member alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from distill import training
from distill.errors import UserError
from distill.objective import Objective
from distill.teachers.frozen import FrozenTeacher
from distill.teachers.multi import MultiTeacher
from distill.types import Batch, Briefing, Row, Signal, collate
from tests import tiny

WEIGHTS = {"wide": 3.0, "deep": 1.0}
SHARP = {name: {**tiny.llama(size, layers), "initializer_range": 0.5} for name, size, layers in
         (("wide", 16, 2), ("deep", 12, 3))}  # fmt: skip


def config(**changes: Any) -> dict[str, Any]:
    members = {f"teacher__members__{name}__config": own for name, own in SHARP.items()}
    weights = {f"teacher__members__{name}__weight": weight for name, weight in WEIGHTS.items()}
    return tiny.config("multi_teacher", **members, **weights, **changes)


@pytest.fixture(scope="module")
def members() -> dict[str, FrozenTeacher]:
    _, teacher = training.build_models(config())
    assert isinstance(teacher, MultiTeacher)
    assert teacher.weights == WEIGHTS
    return teacher.members


def batch(*names: str | None) -> Batch:
    """One row of another length for each name; the first tokens are no targets."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number, name in enumerate(names):
        ids = torch.randint(3, 13, (5 + 2 * number,), generator=generator)
        rows.append(Row(number, ids, torch.arange(len(ids)) >= 3, briefing=Briefing(name)))
    return collate(rows, pad_id=1, window_positions=1, on_policy=False)


def definition(member: FrozenTeacher, seen: Batch) -> list[Tensor]:
    """Of each row the probabilities of its targets, by the whole model on this row alone, in float64."""
    found = []
    for ids, mask, targets in zip(seen.input_ids, seen.attention_mask, seen.target_mask, strict=True):
        logits = member.lm.model(input_ids=ids[mask][None]).logits[0].double()
        places = [place for place in range(int(mask.sum())) if targets[place]]
        found.append(torch.stack([logits[place - 1].exp() / logits[place - 1].exp().sum() for place in places]))
    return found


def test_the_mixture_is_the_weighted_mean_of_probabilities(members: dict[str, FrozenTeacher]) -> None:
    seen = batch(None, None, None)
    signal = MultiTeacher(members, WEIGHTS).signal(seen)
    assert signal.hidden.shape == (len(seen.targets), 16 + 12)
    wide, deep = (torch.cat(definition(members[name], seen)) for name in ("wide", "deep"))
    assert float((wide - deep).abs().max()) > 0.2
    expected = 0.75 * wide + 0.25 * deep
    torch.testing.assert_close(signal.head(signal.hidden).double().exp(), expected, rtol=1e-4, atol=1e-6)
    # The loss asks for any positions at once.
    torch.testing.assert_close(signal.head(signal.hidden[3:5]).double().exp(), expected[3:5], rtol=1e-4, atol=1e-6)
    assert signal.head(signal.hidden[:0]).shape == (0, 19)


def test_its_forward_kl_has_the_gradient_of_the_weighted_kls(members: dict[str, FrozenTeacher]) -> None:
    seen = batch(None, None)
    start = torch.randn(len(seen.targets), 19, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    objective, gradients = Objective(divergence="forward_kl"), []
    for teachers in ([(1.0, MultiTeacher(members, WEIGHTS))], [(0.75, members["wide"]), (0.25, members["deep"])]):
        logits, loss = start.clone().requires_grad_(), torch.zeros(())
        for weight, teacher in teachers:
            loss = loss + weight * objective(Signal(logits, lambda x: x), seen.targets, teacher.signal(seen), None)[0]
        gradients.append(torch.autograd.grad(loss, logits)[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


def test_each_row_is_taught_by_the_member_it_names(
    members: dict[str, FrozenTeacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, asked = batch("deep", "wide", "deep", "deep"), dict[str, int]()
    for name, member in members.items():
        real = member.signal
        monkeypatch.setattr(
            member,
            "signal",
            lambda part, name=name, real=real: asked.update({name: len(part.input_ids)}) or real(part),
        )
    signal = MultiTeacher(members, None).signal(seen)
    assert asked == {"deep": 3, "wide": 1}, "no row is read by a teacher that is not its own"
    by_member = {name: definition(member, seen) for name, member in members.items()}
    expected = torch.cat([by_member[str(name)][row] for row, name in enumerate(seen.members)])
    found = signal.head(signal.hidden).double().exp()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(signal.head(signal.hidden[1:6]).double().exp(), expected[1:6], rtol=1e-4, atol=1e-6)
    assert not signal.hidden.requires_grad


def test_a_batch_of_one_member_alone_asks_no_other(
    members: dict[str, FrozenTeacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members["deep"], "signal", lambda _: pytest.fail("asked in vain"))
    seen = batch("wide", "wide")
    signal = MultiTeacher(members, None).signal(seen)
    torch.testing.assert_close(
        signal.head(signal.hidden).double().exp(),
        torch.cat(definition(members["wide"], seen)),
        rtol=1e-4,
        atol=1e-6,
    )
    silent = replace(seen, target_mask=torch.zeros_like(seen.target_mask))
    empty = MultiTeacher(members, None).signal(silent)
    assert empty.head(empty.hidden).shape == (0, 19)


def test_another_tokenizer_is_refused_by_the_members_name(byte_model: str) -> None:
    other = {"teacher__members__deep__tokenizer": byte_model}
    with pytest.raises(UserError, match=r"`teacher.members.deep.path` must be a model with the student's tokenizer"):
        training.build_models(config(**other))


@pytest.fixture
def byte_model(tmp_path: Any) -> str:
    from tests.unit.data.conftest import build_byte_tokenizer

    build_byte_tokenizer().save_pretrained(tmp_path)
    return str(tmp_path)
