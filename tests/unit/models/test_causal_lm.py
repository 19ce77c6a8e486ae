"""hidden + head = the model's own logits, in every family; padding, precision and gradients."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from distill.errors import UserError
from distill.models.build import build
from distill.models.causal_lm import CausalLM, evaluating, wrap
from distill.models.head import LogitHead
from distill.types import Row, collate

SIZES = {
    "vocab_size": 20,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 20, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": SIZES | {"tie_word_embeddings": True},
    "qwen3": SIZES | {"head_dim": 16},
    "gemma2": SIZES | {"head_dim": 8, "final_logit_softcapping": 3.0},
    "gemma3_text": SIZES | {"head_dim": 8},
    "gpt2": GPT2,
    "granite": SIZES | {"logits_scaling": 6.0},
    "cohere": SIZES | {"logit_scale": 0.3},
    "hyperclovax": SIZES | {"logits_scaling": 0.7},
    "mixtral": SIZES | {"num_local_experts": 4},
    "olmo2": SIZES,
    "phi": SIZES,
    "bloom": {"vocab_size": 20, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gpt_neox": SIZES,
    "opt": SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "llama4_text": SIZES | {"intermediate_size_mlp": 48, "num_local_experts": 2, "head_dim": 8},
    "modernbert-decoder": SIZES | {"local_attention": 8},
}
WITHOUT_HEAD = {"modernbert-decoder"}


def make(name: str, tokenizer: Any, **config: Any) -> CausalLM:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **FAMILIES[name] | config))
    for parameter in model.parameters():
        # Logits large enough for caps and scales to show.
        parameter.data.mul_(2.0 if parameter.ndim > 1 else 1.0)
    return wrap(model.eval(), tokenizer, key="student")


def tokens(rows: int = 2, length: int = 7) -> tuple[Tensor, Tensor]:
    ids = torch.randint(1, 16, (rows, length), generator=torch.Generator().manual_seed(1))
    return ids, torch.ones_like(ids, dtype=torch.bool)


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_and_head_are_the_models_logits(name, make_tokenizer):
    lm = make(name, make_tokenizer())
    ids, mask = tokens()
    with torch.no_grad():
        logits = lm.head(lm.hidden(ids, mask))
        expected = lm.model(ids, attention_mask=mask.long()).logits
    assert lm.vocab_size == 16
    assert lm.padded_vocab_size == expected.shape[-1] == 20
    assert (lm.backbone is None) == (name in WITHOUT_HEAD)
    torch.testing.assert_close(logits, expected[..., :16], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_side_does_not_matter(name, make_tokenizer):
    lm = make(name, make_tokenizer())
    ids, mask = tokens()
    padding = torch.full((2, 3), lm.pad_id)
    with torch.no_grad():
        plain = lm.hidden(ids, mask)
        left = lm.hidden(torch.cat([padding, ids], 1), torch.cat([padding < 0, mask], 1))
        right = lm.hidden(torch.cat([ids, padding], 1), torch.cat([mask, padding < 0], 1))
    torch.testing.assert_close(left[:, 3:], plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(right[:, :7], plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "scale", "cap"), [("granite", 1 / 6, None), ("gemma2", 1.0, 3.0), ("llama", 1.0, None)]
)
def test_scale_and_cap_are_measured(name, scale, cap, make_tokenizer):
    head = make(name, make_tokenizer()).head
    assert isinstance(head, LogitHead)
    assert (head.scale, head.cap) == (pytest.approx(scale, rel=1e-6), cap)


def test_a_model_without_a_head_is_named_once(make_tokenizer, caplog):
    with caplog.at_level(logging.WARNING, logger="distill"):
        make("modernbert-decoder", make_tokenizer())
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("distill")]
    assert len(ours) == 1
    assert ours[0].startswith("modernbert-decoder: ")


def test_positions_that_do_not_count_from_0_are_refused(make_tokenizer):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("roberta", **SIZES))
    with pytest.raises(UserError, match=r"student\.path.*positions.*roberta"):
        wrap(model, make_tokenizer(), key="student")


@pytest.mark.parametrize("name", ["llama", "gpt2", "modernbert-decoder"])
def test_gradients_are_those_of_the_model(name, make_tokenizer):
    lm = make(name, make_tokenizer())
    reference = copy.deepcopy(lm)
    ids, mask = tokens()
    lm.head(lm.hidden(ids, mask)).logsumexp(-1).sum().backward()
    reference.model(ids, attention_mask=mask.long()).logits[..., :16].logsumexp(-1).sum().backward()
    for (key, ours), theirs in zip(lm.model.named_parameters(), reference.model.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=key)


def test_padding_rows_get_no_gradient(make_tokenizer):
    lm = make("llama", make_tokenizer())
    ids, mask = tokens()
    lm.head(lm.hidden(ids, mask)).logsumexp(-1).sum().backward()
    grad = lm.model.lm_head.weight.grad
    assert grad[:16].abs().min() > 0
    assert grad[16:].abs().max() == 0


def test_a_copy_is_independent(make_tokenizer):
    lm = make("llama", make_tokenizer())
    twin = copy.deepcopy(lm)
    ids, mask = tokens()
    before = lm.head(lm.hidden(ids, mask))
    twin.model.requires_grad_(False).lm_head.weight.add_(1.0)
    assert torch.equal(lm.head(lm.hidden(ids, mask)), before)
    assert not torch.equal(twin.head(twin.hidden(ids, mask)), before)


@pytest.mark.parametrize("rows", [16, 20])
def test_mixed_precision_keeps_fp32_weights(rows, make_tokenizer):
    lm = make("llama", make_tokenizer(), vocab_size=rows)
    ids, mask = tokens()
    expected = lm.head(lm.hidden(ids, mask))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = lm.hidden(ids, mask)
        logits = lm.head(hidden)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.05)
    # The loss may run outside autocast.
    lm.head(hidden.bfloat16()).sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in lm.model.parameters())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_model(dtype, llama):
    lm = build(llama | {"dtype": dtype}, seed=0, key="student")
    ids, mask = tokens()
    logits = lm.head(lm.hidden(ids, mask))
    assert logits.dtype == getattr(torch, dtype)
    assert lm.backbone is not None
    torch.testing.assert_close(logits, lm.model(ids).logits[..., :16], rtol=0.02, atol=0.02)


def test_signal_is_aligned_with_the_targets(make_tokenizer):
    lm = make("llama", make_tokenizer())
    ids, _ = tokens(1, 5)
    row = Row(0, ids[0], torch.tensor([False, False, True, False, True]))
    batch = collate([row, row], pad_id=0, window_positions=4, on_policy=False)
    signal = lm.signal(batch)
    assert torch.equal(signal.hidden[:2], lm.hidden(ids, torch.ones_like(ids))[0, [1, 3]])
    assert signal.head(signal.hidden).shape == (4, 16)


def test_no_target_still_has_a_graph(make_tokenizer):
    lm = make("llama", make_tokenizer())
    ids, _ = tokens(1, 5)
    batch = collate([Row(0, ids[0], torch.zeros(5, dtype=torch.bool))], pad_id=0, window_positions=1, on_policy=False)
    signal = lm.signal(batch)
    signal.head(signal.hidden).sum().backward()
    assert all(parameter.grad.abs().max() == 0 for parameter in lm.model.parameters())


def test_max_positions(make_tokenizer):
    assert make("llama", make_tokenizer()).max_positions == 64
    assert make("gpt2", make_tokenizer()).max_positions == 64
    assert make("bloom", make_tokenizer()).max_positions is None


def test_more_tokens_than_rows_are_refused(make_tokenizer):
    with pytest.raises(UserError, match=r"student\.tokenizer.*12 rows.*16 tokens"):
        make("llama", make_tokenizer(), vocab_size=12)


def test_a_tokenizer_without_an_end_is_refused(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="end-of-sequence"):
        make("llama", tokenizer, eos_token_id=None)


def test_wrapping_restores_modes(make_tokenizer):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **GPT2)).train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    lm = wrap(model, make_tokenizer(), key="student")
    assert [module.training for module in lm.model.modules()] == modes


def test_evaluating_leaves_no_trace(make_tokenizer):
    lm = make("gpt2", make_tokenizer())
    lm.model.train().transformer.h[0].eval()
    modes = [module.training for module in lm.model.modules()]
    ids, mask = tokens()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with evaluating(lm.model):
            assert not any(module.training for module in lm.model.modules())
            assert not lm.hidden(ids, mask).requires_grad
        lm.head(lm.hidden(ids, mask)).float().logsumexp(-1).sum().backward()
    assert [module.training for module in lm.model.modules()] == modes
    assert all(parameter.grad is not None for parameter in lm.model.parameters())


def test_evaluating_restores_modes_after_an_error():
    module = torch.nn.Linear(1, 1)
    with pytest.raises(ZeroDivisionError), evaluating(module):
        1 / 0  # noqa: B018
    assert module.training
