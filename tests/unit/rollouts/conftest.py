"""A tiny random Llama as the decode loop needs it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB = 32


def build_lm(eos: tuple[int, ...] = (), pad: int = 0, vocab: int = VOCAB, **config: Any) -> SimpleNamespace:
    options = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(options | config)))
    return SimpleNamespace(
        model=model, vocab_size=VOCAB, eos_ids=frozenset(eos), pad_id=pad, max_positions=128, name="model"
    )


def ragged_prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 12, (count,), generator=generator).tolist()
    return [torch.randint(1, VOCAB, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture
def make_lm() -> Any:
    return build_lm


@pytest.fixture
def prompts() -> list[list[int]]:
    return ragged_prompts(14)
