"""A teacher that reads another prompt: its states are at the student's own targets, live, and without gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from distill.models import tokenizers
from distill.models.causal_lm import CausalLM, wrap
from distill.objective import Objective
from distill.teachers.base import Teacher
from distill.teachers.frozen import FrozenTeacher
from distill.teachers.self_taught import SelfTeacher
from distill.types import Batch, Briefing, Row, collate
from tests import tiny

COMPLETIONS = ([7, 8, 1], [9], [4, 4, 5, 6, 1])
PROMPTS = ([3, 4], [5, 6, 7], [8])
TOLD = ((10, 11, 3, 4), (5,), (12, 9, 12, 9, 12, 8))
"""Longer than the student's prompt, shorter, and of another beginning. Id 1 ends a sequence and is the padding."""


@pytest.fixture
def lm() -> CausalLM:
    """GPT-2 because it has dropout, sharp enough for every token to matter."""
    torch.manual_seed(0)
    tokenizer = tokenizers.load(tiny_tokenizer(), key="student")
    settings = GPT2Config(
        vocab_size=19, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.3, attn_pdrop=0.5
    )
    return wrap(GPT2LMHeadModel(settings), tokenizer, key="student")


def tiny_tokenizer() -> str:
    from distill.models.locate import locate

    return str(locate(tiny.TOKENIZER, key="student"))


def batch(told: bool = True) -> Batch:
    rows = []
    for number, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        ids = torch.tensor([*prompt, *completion])
        briefing = Briefing(None, TOLD[number], len(prompt)) if told else Briefing()
        rows.append(Row(number, ids, torch.arange(len(ids)) >= len(prompt), briefing=briefing))
    return collate(rows, pad_id=1, window_positions=9, on_policy=True)


def definition(lm: CausalLM) -> Tensor:
    """Log-probabilities ``[N, V]`` after what the teacher was told, token by token, one unpadded row at a time."""
    found, model = [], copy.deepcopy(lm.model).double().eval()
    for told, completion in zip(TOLD, COMPLETIONS, strict=True):
        for count in range(len(completion)):
            ids = torch.tensor([[*told, *completion[:count]]])
            found.append(model(input_ids=ids).logits[0, -1].log_softmax(-1))
    return torch.stack(found).detach()


@pytest.mark.parametrize("kind", [FrozenTeacher, SelfTeacher])
def test_it_is_asked_about_the_students_tokens_after_its_own_prompt(kind: type[FrozenTeacher], lm: CausalLM) -> None:
    seen = batch()
    signal = kind(lm).signal(seen)
    assert len(signal.hidden) == len(seen.targets) == 9
    assert seen.for_teacher.targets.tolist() == seen.targets.tolist() == [7, 8, 1, 9, 4, 4, 5, 6, 1]
    found = signal.head(signal.hidden).double().log_softmax(-1)
    torch.testing.assert_close(found, definition(lm), rtol=0, atol=1e-5)
    plain = kind(lm).signal(batch(told=False))
    assert float((plain.head(plain.hidden).log_softmax(-1) - found).abs().max()) > 0.1, "the prompt makes no difference"


def gradients(lm: CausalLM, teacher: Teacher, told: bool) -> tuple[float, list[Tensor]]:
    lm.model.requires_grad_(True).train()
    seen = batch(told)
    signal = teacher.signal(seen)
    assert not signal.hidden.requires_grad
    torch.manual_seed(1)
    loss, _ = Objective(divergence="reverse_kl", chunk_size=4)(lm.signal(seen), seen.targets, signal, None)
    parameters = list(lm.model.parameters())
    found = torch.autograd.grad(loss, parameters)
    assert all(parameter.grad is None for parameter in parameters)
    return float(loss.detach()), list(found)


def test_its_gradients_are_those_of_a_frozen_copy(lm: CausalLM) -> None:
    """Also of the head, which both share: none flows in from the teacher's side."""
    ours = gradients(lm, SelfTeacher(lm), told=True)
    theirs = gradients(lm, FrozenTeacher(copy.deepcopy(lm)), told=True)
    assert ours[0] == theirs[0] > 0.1
    for live, frozen in zip(ours[1], theirs[1], strict=True):
        assert torch.equal(live, frozen)


def test_without_more_to_read_it_teaches_nothing(lm: CausalLM) -> None:
    lm.model.config.attn_pdrop = 0.0
    for module in lm.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    loss, found = gradients(lm, SelfTeacher(lm), told=False)
    assert abs(loss) < 1e-5
    assert max(float(gradient.abs().max()) for gradient in found) < 1e-5


def test_modes_come_back_and_the_weights_are_the_current_ones(lm: CausalLM) -> None:
    lm.model.train()
    teacher, seen = SelfTeacher(lm), batch()
    before = teacher.signal(seen).hidden
    assert torch.equal(teacher.signal(seen).hidden, before), "dropout is off"
    assert all(module.training for module in lm.model.modules())
    with torch.no_grad():
        next(lm.model.parameters()).mul_(1.5)
    assert not torch.equal(teacher.signal(seen).hidden, before)
    assert teacher.head_parameters == []
    assert teacher.place("cpu") is teacher
