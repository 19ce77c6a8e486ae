"""Tokens per second of the decode loop beside ``transformers``' ``generate``, on a tiny Llama with random weights.

    python benchmarks/rollout.py --rows 64 --new-tokens 96

Both sample at temperature 1. In the "equal" table every row runs to the limit; in the "ragged" one each token ends a
row with a chance of about 1 in 24, which is where rows that leave the batch pay.
"""

from __future__ import annotations

import argparse
import time
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from distill.rollouts.decode import Sampling, generate

EOS_SHARE = 24


def build(hidden: int, layers: int, vocab: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def ours(model: LlamaForCausalLM, prompts: list[list[int]], eos: list[int], new_tokens: int) -> int:
    vocab_size, eos_ids = model.config.vocab_size, frozenset(eos)
    lm: Any = SimpleNamespace(
        model=model, vocab_size=vocab_size, eos_ids=eos_ids, pad_id=0, max_positions=None, name="model"
    )
    sampling = Sampling(max_new_tokens=new_tokens)
    return sum(len(row.ids) for row in generate(lm, prompts, sampling, range(len(prompts)), len(prompts)))


def theirs(model: LlamaForCausalLM, prompts: list[list[int]], eos: list[int], new_tokens: int) -> int:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    stop = {"eos_token_id": eos, "pad_token_id": 0} if eos else {"eos_token_id": None, "pad_token_id": 0}
    out = model.generate(
        ids, attention_mask=(ids != 0).long(), do_sample=True, top_k=0, max_new_tokens=new_tokens, **stop
    )
    return int((out[:, width:] != 0).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model = build(options.hidden, options.layers, options.vocab)
    draw = torch.Generator().manual_seed(1)
    lengths = torch.randint(4, 33, (options.rows,), generator=draw).tolist()
    prompts = [torch.randint(1, options.vocab, (length,), generator=draw).tolist() for length in lengths]
    print(f"{options.rows} rows, {options.new_tokens} new tokens, {torch.get_num_threads()} threads")
    print(f"{'lengths':8} {'loop':10} {'tokens':>8} {'seconds':>8} {'tokens/s':>9}")
    for name, eos in (("equal", []), ("ragged", list(range(1, options.vocab, EOS_SHARE)))):
        for loop, function in (("generate", theirs), ("distill", ours)):
            function(model, prompts, eos, 2)
            began = time.perf_counter()
            tokens = sum(function(model, prompts, eos, options.new_tokens) for _ in range(options.repeats))
            seconds = time.perf_counter() - began
            print(f"{name:8} {loop:10} {tokens:8} {seconds:8.2f} {tokens / seconds:9.0f}")


if __name__ == "__main__":
    main()
