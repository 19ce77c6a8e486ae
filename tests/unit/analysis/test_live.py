"""Effective weights of live models, adapters included."""

import copy

import peft
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from distill.analysis.live import live_weights


def llama(tie: bool = True) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        attention_bias=True,
        tie_word_embeddings=tie,
    )
    return LlamaForCausalLM(config)


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=8, n_layer=2, n_head=2, n_positions=16))


def test_plain_model_lists_each_parameter_once() -> None:
    model = llama(tie=True)
    weights, tied = live_weights(model)
    assert set(weights) == {name for name, _ in model.named_parameters()}
    assert tied == ["lm_head.weight"]
    assert live_weights(llama(tie=False))[1] == []


def test_readers_follow_training() -> None:
    model = llama()
    read = live_weights(model)[0]["model.norm.weight"].read
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    assert torch.equal(read(), model.model.norm.weight)
    assert not read().requires_grad


def test_buffers_of_floats_that_a_checkpoint_holds_are_listed() -> None:
    model = llama()
    model.model.layers[0].mlp.register_buffer("decay", torch.ones(3))
    model.model.layers[0].mlp.register_buffer("cache", torch.ones(3), persistent=False)
    model.model.layers[0].mlp.register_buffer("counts", torch.ones(3, dtype=torch.int64))
    weights, _ = live_weights(model)
    assert set(weights) - {name for name, _ in model.named_parameters()} == {"model.layers.0.mlp.decay"}
    model.model.layers[0].mlp.decay = torch.zeros(3)
    assert not weights["model.layers.0.mlp.decay"].read().any(), "read anew, as a forward pass may replace it"


def adapted(model: PreTrainedModel, **options: object) -> peft.PeftModel:
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return wrapped


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"use_rslora": True}, {"modules_to_save": ["norm", "ln_f"]}]
)
def test_adapter_reads_as_the_merged_export(build: object, options: dict[str, object]) -> None:
    model = adapted(build(), **options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights, _ = live_weights(model)
    read = {name: weight.read() for name, weight in weights.items()}
    exported = dict(copy.deepcopy(model).merge_and_unload().named_parameters())
    assert set(read) == set(exported)
    for name, value in exported.items():
        assert torch.equal(read[name], value), name
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_adapter_changes_what_it_adapts_and_nothing_else() -> None:
    torch.manual_seed(0)
    base = llama()
    plain = {name: value.clone() for name, value in base.named_parameters()}
    model = adapted(base)
    weights, tied = live_weights(model)
    moved = {name for name, weight in weights.items() if not torch.equal(weight.read(), plain[name])}
    assert moved == {name for name in plain if "proj.weight" in name}
    assert tied == ["lm_head.weight"]
    lora = model.base_model.model.model.layers[0].self_attn.q_proj
    expected = lora.base_layer.weight + 3 * lora.lora_B["default"].weight @ lora.lora_A["default"].weight
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(weights[name].read(), expected, rtol=1e-6, atol=1e-6)
