from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from distill.data.char_tokenizer import build_tokenizer
from distill.errors import RunError, UserError
from distill.models.causal_lm import wrap
from distill.rollouts import decode
from distill.rollouts.decode import Sampling, generate
from distill.types import Row, collate

EOS = (3, 9)


def check_equal(found, expected):
    assert [row.ids for row in found] == [row.ids for row in expected]
    assert [row.stopped for row in found] == [row.stopped for row in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.logprobs, other.logprobs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=20), Sampling(0.7, 0.9, 12, 20), Sampling(0.0, 1, 0, 20)])
def test_rows_do_not_depend_on_batch_split_order_or_padding(make_lm, prompts, sampling):
    lm = make_lm(EOS)
    seeds = list(range(100, 114))
    together = generate(lm, prompts, sampling, seeds)
    assert len({len(row.ids) for row in together}) > 3, "the rows must end raggedly for this to mean anything"
    for batch_size in (1, 5):
        check_equal(generate(lm, prompts, sampling, seeds, batch_size), together)
    order = torch.randperm(14, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = generate(lm, [prompts[i] for i in order], sampling, [seeds[i] for i in order], 6)
    check_equal(shuffled, [together[i] for i in order])


def test_seed_decides_the_tokens(make_lm, prompts):
    lm = make_lm()
    same = generate(lm, [prompts[0]] * 3, Sampling(max_new_tokens=20), [1, 1, 2])
    assert same[0].ids == same[1].ids != same[2].ids


def test_greedy_equals_transformers_generate(make_lm, prompts):
    lm = make_lm(EOS)
    lm.model.eval()
    found = generate(lm, prompts, Sampling(temperature=0.0, max_new_tokens=16), [0] * 14)
    for prompt, row in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        full = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=16,
            eos_token_id=list(EOS),
            pad_token_id=0,
        )
        assert list(row.ids) == full[0, len(prompt) :].tolist()
    assert {row.stopped for row in found} == {True, False}


def test_logprobs_equal_a_right_padded_forward_on_the_kept_ids(make_lm, prompts):
    lm = make_lm(EOS)
    found = generate(lm, prompts, Sampling(max_new_tokens=20), range(14))
    rows = [
        Row(i, torch.tensor([*prompt, *row.ids]), torch.arange(len(prompt) + len(row.ids)) >= len(prompt), None)
        for i, (prompt, row) in enumerate(zip(prompts, found, strict=True))
    ]
    batch = collate(rows, pad_id=0, window_positions=1, on_policy=True)
    with torch.no_grad():
        logits = lm.model.eval()(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    predicted = logits[:, :-1].log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
    expected = predicted[batch.target_mask[:, 1:]]
    torch.testing.assert_close(torch.cat([row.logprobs for row in found]), expected, atol=1e-5, rtol=1e-5)


def test_a_sampled_eos_is_kept_and_ends_the_row_and_a_cut_row_has_none(make_lm, prompts):
    lm = make_lm(EOS)
    found = generate(lm, prompts * 4, Sampling(max_new_tokens=15), range(56))
    for row in found:
        assert row.stopped == (row.ids[-1] in EOS)
        assert not set(row.ids[:-1]) & set(EOS)
        assert row.stopped or len(row.ids) == 15
        assert len(row.logprobs) == len(row.ids)
    assert {row.stopped for row in found} == {True, False}
    assert {row.ids[-1] for row in found if row.stopped} == set(EOS)


def test_padding_with_the_eos_token_changes_nothing(make_lm, prompts):
    sampling = Sampling(max_new_tokens=15)
    check_equal(
        generate(make_lm(EOS, pad=3), prompts, sampling, range(14)),
        generate(make_lm(EOS, pad=0), prompts, sampling, range(14)),
    )


def test_an_eos_inside_the_prompt_does_not_end_the_row(make_lm):
    found = generate(make_lm((3,), pad=3), [[3, 5, 3], [3]], Sampling(0.0, max_new_tokens=4), [0, 0])
    assert all(len(row.ids) > 1 or row.stopped for row in found)
    alone = generate(make_lm((3,), pad=0), [[3, 5, 3]], Sampling(0.0, max_new_tokens=4), [0])
    check_equal(found[:1], alone)


def test_ended_rows_leave_the_batch(make_lm, prompts):
    lm = make_lm(EOS)
    shapes, progress = [], []
    hook = lm.model.model.register_forward_pre_hook(
        lambda _, __, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    found = generate(lm, prompts, Sampling(max_new_tokens=40), range(14), on_progress=progress.append)
    hook.remove()
    assert shapes[0] == (14, max(map(len, prompts)))
    assert all(width == 1 for _, width in shapes[1:]), "the cache must be used"
    for step, (rows, _) in enumerate(shapes):
        growing = sum(len(row.ids) > step for row in found)
        assert growing == progress[step]
        assert growing <= rows <= max(growing / 0.75, growing)
    assert shapes[-1][0] < 14
    assert sum(progress) == sum(len(row.ids) for row in found)
    assert len(progress) == len(shapes) == max(len(row.ids) for row in found)


FAMILIES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    },
    "gemma2": {"head_dim": 8, "sliding_window": 5, "num_key_value_heads": 2},
    "qwen3": {"head_dim": 8, "num_key_value_heads": 2},
    "lfm2": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_are_indifferent_to_padding_and_leaving_rows(make_lm, prompts, family):
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "vocab_size": 32}
    options = FAMILIES[family] if family in ("gpt2", "bloom", "opt") else common | FAMILIES[family]
    torch.manual_seed(0)
    lm = make_lm(EOS)
    lm.model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **options, **special))
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
    sampling = Sampling(max_new_tokens=16)
    check_equal(generate(lm, prompts, sampling, range(14)), generate(lm, prompts, sampling, range(14), batch_size=1))


def test_the_padded_part_of_the_vocabulary_is_never_sampled_and_has_no_mass(make_lm, prompts):
    lm = make_lm(vocab=48)
    with torch.no_grad():
        lm.model.lm_head.weight[32:] = lm.model.lm_head.weight[:16] * 3
    found = generate(lm, prompts, Sampling(max_new_tokens=12), range(14))
    assert max(max(row.ids) for row in found) < 32
    row, prompt = found[0], prompts[0]
    with torch.no_grad():
        logits = lm.model.eval()(torch.tensor([[*prompt, *row.ids]])).logits[0, len(prompt) - 1 : -1, :32]
    expected = logits.log_softmax(-1)[torch.arange(12), list(row.ids)]
    torch.testing.assert_close(row.logprobs, expected, atol=1e-5, rtol=1e-5)


def test_the_generation_config_of_the_model_is_ignored(make_lm, prompts):
    lm = make_lm(EOS)
    sampling = Sampling(max_new_tokens=12)
    plain = generate(lm, prompts, sampling, range(14))
    for name, value in {"top_k": 1, "top_p": 0.01, "temperature": 0.01, "repetition_penalty": 50.0}.items():
        setattr(lm.model.generation_config, name, value)
    lm.model.generation_config.eos_token_id = list(range(32))
    lm.model.generation_config.max_length = 2
    check_equal(generate(lm, prompts, sampling, range(14)), plain)


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_training_mode_dropout_and_cache_settings_come_back(make_lm, prompts):
    lm = make_lm(attention_dropout=0.5, use_cache=False)
    sampling = Sampling(max_new_tokens=8)
    lm.model.eval()
    without_dropout = generate(lm, prompts, sampling, range(14))
    assert not any(module.training for module in lm.model.modules())
    lm.model.train()
    lm.model.gradient_checkpointing_enable()
    lm.model.model.layers[0].eval()
    before = [module.training for module in lm.model.modules()]
    check_equal(generate(lm, prompts, sampling, range(14)), without_dropout)
    assert [module.training for module in lm.model.modules()] == before
    assert lm.model.config.use_cache is False
    assert lm.model.is_gradient_checkpointing


def test_training_mode_comes_back_after_an_error(make_lm):
    lm = make_lm()
    lm.model.train()
    with torch.no_grad():
        lm.model.lm_head.weight[5] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        generate(lm, [[1, 2]], Sampling(max_new_tokens=4), [0])
    assert all(module.training for module in lm.model.modules())
    assert torch.is_grad_enabled()


def test_lora_students_sample_from_the_adapted_policy(make_lm, prompts):
    lm = make_lm(EOS)
    sampling = Sampling(max_new_tokens=10)
    plain = generate(lm, prompts, sampling, range(14))
    lm.model = get_peft_model(lm.model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted = generate(lm, prompts, sampling, range(14))
    assert [row.ids for row in adapted] != [row.ids for row in plain]
    lm.model = lm.model.merge_and_unload()
    check_equal(adapted, generate(lm, prompts, sampling, range(14)))


def test_under_autocast_a_later_forward_still_trains(make_lm, prompts):
    lm = make_lm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = generate(lm, prompts, Sampling(max_new_tokens=4), range(14))
        lm.model(torch.tensor([[1, 2, 3]])).logits.float().sum().backward()
    assert all(row.logprobs.dtype == torch.float32 for row in found)
    assert all(parameter.grad is not None for parameter in lm.model.parameters())


def test_nothing_sampled_has_a_graph(make_lm):
    lm = make_lm()
    assert not generate(lm, [[1]], Sampling(max_new_tokens=2), [0])[0].logprobs.requires_grad


class WithoutLogitsToKeep(LlamaForCausalLM):
    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None):
        return super().forward(input_ids, attention_mask, position_ids, past_key_values, use_cache=use_cache)


def test_a_model_without_logits_to_keep_is_served(make_lm, prompts):
    lm = make_lm(EOS)
    sampling = Sampling(max_new_tokens=8)
    expected = generate(lm, prompts, sampling, range(14))
    lm.model.__class__ = WithoutLogitsToKeep
    check_equal(generate(lm, prompts, sampling, range(14)), expected)


def test_rows_end_at_the_context_of_the_model(make_lm):
    lm = make_lm()
    lm.max_positions = 8
    found = generate(lm, [[1] * 5, [1] * 7, [1]], Sampling(max_new_tokens=4), [0, 0, 0])
    assert [len(row.ids) for row in found] == [3, 1, 4]
    assert not any(row.stopped for row in found)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_row_that_ended_at_the_context_may_wait_for_the_others(make_lm, family):
    lm = make_lm()
    lm.max_positions = 16
    sizes = {"gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}, "opt": FAMILIES["opt"]}[family]
    limit = {} if family == "gpt2" else {"max_position_embeddings": 16}
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "vocab_size": 32}
    lm.model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **limit, **special))
    prompts = [[1] * 10, *([1, token] for token in range(2, 10))]
    sampling = Sampling(max_new_tokens=14)
    found = generate(lm, prompts, sampling, range(9))
    assert [len(row.ids) for row in found] == [6] + [14] * 8
    check_equal(found, generate(lm, prompts, sampling, range(9), batch_size=1))


WITHOUT_CACHE = {
    "mamba": {"state_size": 4},
    "mamba2": {"state_size": 4, "num_heads": 4, "head_dim": 16, "n_groups": 1, "expand": 2},
    "rwkv": {"attention_hidden_size": 32},
}


@pytest.mark.parametrize("family", WITHOUT_CACHE)
def test_models_without_a_kv_cache_are_read_again_at_each_step(family):
    tokenizer = build_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": len(tokenizer), "eos_token_id": 1}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **WITHOUT_CACHE[family]))
    lm = wrap(model, tokenizer, key="student")
    prompts = [[5], [7, 8, 9, 4, 5], [6, 5, 7]] * 3
    sampling = Sampling(max_new_tokens=12)
    found = generate(lm, prompts, sampling, range(9))
    assert {row.stopped for row in found} == {True, False}
    check_equal(found, generate(lm, prompts, sampling, range(9), batch_size=1))
    for prompt, row in zip(prompts, found, strict=True):
        ids = torch.tensor([[*prompt, *row.ids]])
        with torch.no_grad():
            logprobs = lm.head(lm.hidden(ids, torch.ones_like(ids))).log_softmax(-1)
        said = logprobs[0, len(prompt) - 1 : -1].gather(-1, torch.tensor(row.ids)[:, None]).squeeze(-1)
        torch.testing.assert_close(said, row.logprobs, atol=2e-5, rtol=1e-5)


def test_a_model_that_keeps_its_cache_to_itself_is_refused(make_lm):
    lm = make_lm()
    lm.model.forward = lambda past_key_values=None, **inputs: SimpleNamespace(
        logits=torch.zeros(*inputs["input_ids"].shape, 32)
    )
    with pytest.raises(UserError, match=r"`student\.path` must be a type of model that returns its KV cache"):
        generate(lm, [[1]], Sampling(), [0])


def test_a_cache_with_states_of_its_own_is_never_cut(make_lm, prompts, monkeypatch):
    class WithStates(decode.DynamicCache):
        def reorder_cache(self, beam_idx):
            raise NotImplementedError

    lm = make_lm(EOS)
    expected = generate(lm, prompts, Sampling(max_new_tokens=20), range(14))
    real = lm.model.forward
    lm.model.forward = lambda past_key_values=None, **inputs: real(
        past_key_values=WithStates() if past_key_values is None else past_key_values, **inputs
    )
    monkeypatch.setattr(decode, "unwrap", lambda model: LlamaForCausalLM)
    check_equal(generate(lm, prompts, Sampling(max_new_tokens=20), range(14)), expected)


def test_a_prompt_that_fills_the_context_is_refused(make_lm):
    lm = make_lm()
    lm.max_positions = 8
    with pytest.raises(UserError, match="`prompt` must be shorter than the model's context of 8 tokens, but is '8 tok"):
        generate(lm, [[1], [1] * 8], Sampling(), [0, 0])


def test_an_empty_prompt_is_refused(make_lm):
    with pytest.raises(UserError, match="`prompt` must be at least one token long"):
        generate(make_lm(), [[1], []], Sampling(), [0, 0])


def test_no_prompts_give_no_completions(make_lm):
    assert generate(make_lm(), [], Sampling(), []) == []


def test_every_prompt_needs_a_seed(make_lm):
    with pytest.raises(ValueError, match="shorter"):
        generate(make_lm(), [[1], [2]], Sampling(), [0])
