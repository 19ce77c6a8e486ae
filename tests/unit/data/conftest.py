"""Small byte-level and SentencePiece-like tokenizers, and chat templates of the stock kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from distill.config.schema import Data

CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Reasoning is kept in the last turn only, which always has a thinking block.
QWEN3 = (
    "{% for m in messages %}{% set content = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "{% if m['role'] == 'assistant' and loop.last %}"
    "{% set thought = m['content'].split('</think>')[0].split('<think>')[-1].strip('\n')"
    " if '</think>' in m['content'] else '' %}"
    "{{ '<|im_start|>assistant\n<think>\n' + thought + '\n</think>\n\n' + content + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
# The generation prompt opens a thinking block that finished turns do not have.
R1 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "qwen3": QWEN3, "llama2": LLAMA2, "r1": R1}
SPECIAL = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
]  # fmt: skip


WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3 and Qwen split text."""


def build_byte_tokenizer(
    template: str | None = None, bos: bool = False, eos: str = "<|im_end|>", gpt2: bool = False
) -> Any:
    """Bytes and a few merges; the padding token is the end token, as in many real models. ``gpt2`` splits as GPT-2."""
    merges = [("Ċ", "Ċ"), ("Ġ", "t"), ("h", "e"), ("l", "l")]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2)
    tokenizer.pre_tokenizer = level if gpt2 else pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    return _finish(tokenizer, template, bos, eos)


def build_piece_tokenizer(template: str | None = None) -> Any:
    """Llama-2 style: the beginning of a text gets a ▁ of its own; BOS is added."""
    tokens = ["▁", *(chr(code) for code in range(33, 127)), "▁y", "▁a"]
    model = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[("▁", "y"), ("▁", "a")])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return _finish(tokenizer, template, True, "</s>")


def _finish(tokenizer: Tokenizer, template: str | None, bos: bool, eos: str) -> Any:
    tokenizer.add_special_tokens(SPECIAL)
    if bos:
        pair = ("<s>", tokenizer.token_to_id("<s>"))
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[pair])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos, pad_token=eos, clean_up_tokenization_spaces=False
    )
    fast.chat_template = None if template is None else TEMPLATES[template]
    return fast


@pytest.fixture
def byte_tokenizer() -> Callable[..., Any]:
    return build_byte_tokenizer


@pytest.fixture
def piece_tokenizer() -> Callable[..., Any]:
    return build_piece_tokenizer


@pytest.fixture
def data() -> Callable[..., dict[str, Any]]:
    """The ``data`` section with its defaults."""
    return lambda **keys: Data(**keys).model_dump()
