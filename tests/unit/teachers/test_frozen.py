"""The teacher answers without gradients, in evaluation mode, and belongs to no module."""

from __future__ import annotations

import copy

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from distill.models.causal_lm import CausalLM, wrap
from distill.teachers.frozen import FrozenTeacher
from distill.types import Batch, Row, collate


@pytest.fixture
def lm() -> CausalLM:
    """GPT-2 because it has dropout."""
    torch.manual_seed(0)
    words = Tokenizer(WordLevel({"<eos>": 0, "<unk>": 1, "a": 2, "b": 3}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>")
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    return wrap(model, tokenizer, key="teacher")


@pytest.fixture
def batch() -> Batch:
    row = Row(0, torch.tensor([2, 3, 2, 0]), torch.tensor([False, False, True, True]))
    return collate([row, row], pad_id=0, window_positions=4, on_policy=False)


def test_nothing_requires_a_gradient(lm, batch):
    assert any(parameter.requires_grad for parameter in lm.model.parameters())
    signal = FrozenTeacher(lm).signal(batch)
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert signal.hidden.shape == (4, 16)
    assert not signal.hidden.requires_grad
    assert not signal.head(signal.hidden).requires_grad


def test_its_logits_may_enter_the_students_loss(lm, batch):
    student, teacher = copy.deepcopy(lm), FrozenTeacher(lm)
    ours, theirs = student.signal(batch), teacher.signal(batch)
    (ours.head(ours.hidden).softmax(-1) * theirs.head(theirs.hidden)).sum().backward()
    assert not theirs.hidden.is_inference()
    assert all(parameter.grad is not None for parameter in student.model.parameters())
    assert all(parameter.grad is None for parameter in teacher.lm.model.parameters())


def test_evaluation_mode_comes_back_after_train(lm, batch):
    teacher = FrozenTeacher(lm)
    expected = teacher.signal(batch).hidden
    lm.model.train()
    assert torch.equal(teacher.signal(batch).hidden, expected)
    assert not any(module.training for module in lm.model.modules())


def test_it_is_outside_the_module_tree(lm):
    class Owner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = torch.nn.Linear(2, 2)
            self.teacher = FrozenTeacher(lm)

    owner = Owner().train()
    assert [name for name, _ in owner.named_parameters()] == ["own.weight", "own.bias"]
    assert set(owner.state_dict()) == {"own.weight", "own.bias"}
    assert not owner.teacher.lm.model.training
    assert not isinstance(owner.teacher, torch.nn.Module)
    assert [parameter for parameter in lm.model.parameters() if parameter.requires_grad] == []


def test_to_moves_the_weights(lm):
    teacher = FrozenTeacher(lm)
    assert teacher.place("meta") is teacher
    assert {parameter.device.type for parameter in lm.model.parameters()} == {"meta"}
