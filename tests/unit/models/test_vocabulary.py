"""Padded vocabularies of different sizes, and what slicing drops."""

from __future__ import annotations

import pytest
import torch

from distill.errors import UserError
from distill.models import share_vocabulary
from distill.models.build import build
from distill.models.vocabulary import dropped_mass


def padded(llama, rows):
    return build(llama | {"config": llama["config"] | {"vocab_size": rows}}, seed=0, key="student")


def test_differently_padded_models_share_their_logits(llama):
    student, teacher = padded(llama, 20), padded(llama, 32)
    share_vocabulary(student, teacher)
    ids, mask = torch.arange(6)[None], torch.ones((1, 6), dtype=torch.bool)
    shapes = [lm.head(lm.hidden(ids, mask)).shape for lm in (student, teacher)]
    assert shapes == [(1, 6, 16), (1, 6, 16)]


def test_different_tokenizers_are_refused(llama, make_tokenizer, tmp_path):
    make_tokenizer("0123456789").save_pretrained(tmp_path / "other")
    other = build(llama | {"tokenizer": str(tmp_path / "other")}, seed=0, key="teacher")
    with pytest.raises(UserError, match=r"teacher\.path"):
        share_vocabulary(padded(llama, 20), other)


def test_dropped_mass_is_the_padding_rows_share(llama):
    lm = padded(llama, 20)
    ids = torch.tensor([[3, 4, 5, 0], [6, 7, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    probabilities = lm.model(ids, attention_mask=mask.long()).logits.softmax(-1)[mask]
    assert dropped_mass(lm, ids, mask) == pytest.approx(probabilities[:, 16:].sum(-1).mean().item(), rel=1e-5)
    assert 0.1 < dropped_mass(lm, ids, mask) < 0.4


def test_nothing_is_dropped_without_padding_rows(llama):
    assert dropped_mass(padded(llama, 16), torch.arange(4)[None], torch.ones((1, 4))) == 0.0
