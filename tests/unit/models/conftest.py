"""Small tokenizers and models, written to folders as users have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]


@pytest.fixture
def make_tokenizer() -> MakeTokenizer:
    """One token per character; special tokens by keyword."""

    def make(characters: str = "0123456789+-*=", **special: str) -> PreTrainedTokenizerFast:
        special = {"eos_token": "<eos>", "unk_token": "<unk>"} | special
        tokens = [*special.values(), *characters]
        vocabulary = {token: id_ for id_, token in enumerate(dict.fromkeys(tokens))}
        tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=special["unk_token"]))
        tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)

    return make


@pytest.fixture
def tokenizer_folder(make_tokenizer: MakeTokenizer, tmp_path: Path) -> str:
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


@pytest.fixture
def llama(tokenizer_folder: str) -> dict[str, Any]:
    """Specification of a tiny Llama with random weights and 4 padding rows."""
    return {"config": {"model_type": "llama", "vocab_size": 20, **SIZES}, "tokenizer": tokenizer_folder}
