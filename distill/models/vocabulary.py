"""The vocabulary two models share: refusing different ones, and what is lost with the padding rows."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.models.causal_lm import CausalLM, evaluating, padded_logits
from distill.models.tokenizers import check_same


def share_vocabulary(student: CausalLM, teacher: CausalLM, key: str = "teacher") -> None:
    """Makes sure that logits of both are over the same ``V`` tokens, however far each model's rows are padded.

    Raises:
        UserError: named under ``key``, when the tokenizers differ; it names the first difference.
    """
    check_same(student.tokenizer, teacher.tokenizer, key)
    assert student.vocab_size == teacher.vocab_size


def dropped_mass(lm: CausalLM, input_ids: Tensor, attention_mask: Tensor) -> float:
    """Mean probability a model gives to its padding rows, which slicing drops, over the attended ``[B, T]`` positions.

    Exactly 0 without padding rows. One row at a time, so that one ``[T, V]`` tensor exists at once.
    """
    if lm.padded_vocab_size == lm.vocab_size:
        return 0.0
    total = torch.zeros((), dtype=torch.float64)
    with evaluating(lm.model):
        for ids, mask in zip(input_ids, attention_mask.bool(), strict=True):
            logits = padded_logits(lm, ids[mask][None], mask[mask][None])[0]
            total += logits.float().softmax(-1)[:, lm.vocab_size :].sum().cpu()
    return (total / attention_mask.sum().cpu()).item()
