"""Adapters train alone, and merge into a plain model."""

from __future__ import annotations

import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from distill.config.schema_lora import Lora
from distill.errors import UserError
from distill.models.build import build
from distill.models.export import save
from distill.models.lora import merged

IDS, MASK = torch.arange(6)[None], torch.ones((1, 6), dtype=torch.bool)


def adapted(llama, **options):
    return build(llama | {"lora": Lora(r=4, **options).model_dump()}, seed=0, key="student")


def trained(lm):
    """Random adapter weights; the second factor is 0 at first."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return lm


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_the_adapter_trains(llama, checkpointing):
    lm = adapted(llama | {"gradient_checkpointing": checkpointing})
    lm.model.train()
    lm.head(lm.hidden(IDS, MASK)).logsumexp(-1).sum().backward()
    with_gradient = {name for name, parameter in lm.model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, parameter in lm.model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in with_gradient)


def test_it_starts_as_the_model_itself(llama):
    plain, lm = build(llama, seed=0, key="student"), adapted(llama)
    assert lm.backbone is not None
    assert lm.max_positions == 64
    assert torch.equal(lm.head(lm.hidden(IDS, MASK)), plain.head(plain.hidden(IDS, MASK)))


def test_hidden_and_head_see_the_adapter(llama):
    lm = trained(adapted(llama, target_modules=["q_proj", "down_proj", "lm_head"]))
    logits = lm.head(lm.hidden(IDS, MASK))
    torch.testing.assert_close(logits, lm.model(IDS).logits[..., :16], rtol=1e-5, atol=1e-6)
    with lm.model.disable_adapter():
        assert not torch.allclose(lm.head(lm.hidden(IDS, MASK)), logits, atol=1e-2)


def test_export_merges_a_copy(llama, tmp_path):
    lm = trained(adapted(llama))
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    save(lm, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(loaded).__name__ == "LlamaForCausalLM"
    assert not any("lora" in name for name, _ in loaded.named_parameters())
    torch.testing.assert_close(loaded(IDS).logits, lm.model(IDS).logits, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in lm.model.state_dict().items())


def test_a_plain_model_is_merged_already(llama):
    lm = build(llama, seed=0, key="student")
    assert merged(lm.model) is lm.model


def test_unknown_modules_are_named(llama):
    with pytest.raises(UserError, match=r"`student\.lora\.target_modules`.*nope"):
        adapted(llama, target_modules=["nope"])


def test_missing_peft_says_what_to_install(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"`student\.lora`.*pip install 'distill\[lora\]'"):
        adapted(llama)
