"""From specification to model: seeds, files, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.config.schema import Student
from distill.errors import UserError
from distill.models.build import build
from distill.models.export import save


@pytest.fixture
def folder(llama, tmp_path) -> Path:
    save(build(llama, seed=0, key="student"), tmp_path / "model")
    return tmp_path / "model"


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def refusal(spec: dict[str, Any], key: str = "student") -> str:
    with pytest.raises(UserError) as caught:
        build(spec, seed=0, key=key)
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_weights_are_a_function_of_the_seed(llama):
    one, same, other = (weights(build(llama, seed=seed, key="student").model) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_the_global_generator_is_left_alone(llama, folder):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    build(llama, seed=0, key="student")
    build({"path": str(folder)}, seed=0, key="student")
    assert torch.equal(torch.get_rng_state(), state)


def test_the_schemas_fields_are_understood(llama, folder):
    spec = Student(**llama).model_dump()
    assert build(spec, seed=0, key="student").model.dtype == torch.float32
    loaded = build(Student(path=str(folder), dtype="bfloat16").model_dump(), seed=0, key="student")
    assert loaded.model.dtype == torch.bfloat16


def test_tokens_come_from_the_tokenizer(tokenizer_folder, llama):
    del llama["config"]["vocab_size"]
    lm = build(llama, seed=0, key="student")
    assert lm.model.config.vocab_size == lm.vocab_size == lm.padded_vocab_size == 16
    # The architecture's own default for the end of a sequence is id 2, a digit here.
    assert lm.eos_ids == {0}
    assert lm.pad_id == 0
    # The row of the padding id gets no gradient, and here it is the end of a sequence.
    assert lm.model.get_input_embeddings().padding_idx is None


def test_the_configuration_wins_over_the_tokenizer(llama):
    llama["config"]["eos_token_id"] = [1, 5, 99]
    assert build(llama, seed=0, key="student").eos_ids == {0, 1, 5}


def test_a_saved_model_is_the_same(llama, folder):
    made, loaded = build(llama, seed=0, key="student"), build({"path": str(folder)}, seed=5, key="student")
    ids, mask = torch.arange(8)[None], torch.ones((1, 8), dtype=torch.bool)
    assert torch.equal(made.hidden(ids, mask), loaded.hidden(ids, mask))
    assert (made.eos_ids, made.vocab_size, made.pad_id) == (loaded.eos_ids, loaded.vocab_size, loaded.pad_id)


def test_eos_of_tokenizer_config_and_generation_config(folder):
    edit(folder / "config.json", eos_token_id=3)
    edit(folder / "generation_config.json", eos_token_id=[4, 5])
    assert build({"path": str(folder)}, seed=0, key="student").eos_ids == {0, 3, 4, 5}


def test_generation_settings_change_nothing(folder):
    plain = build({"path": str(folder)}, seed=0, key="student")
    edit(
        folder / "generation_config.json", do_sample=True, top_p=0.1, top_k=1, temperature=0.01, repetition_penalty=9.0
    )
    lm = build({"path": str(folder)}, seed=0, key="student")
    ids, mask = torch.arange(8)[None], torch.ones((1, 8), dtype=torch.bool)
    assert torch.equal(lm.head(lm.hidden(ids, mask)), plain.head(plain.hidden(ids, mask)))
    save(lm, folder)
    assert json.loads((folder / "generation_config.json").read_text())["top_p"] == 0.1


def test_another_tokenizer_can_be_named(folder, make_tokenizer, tmp_path):
    make_tokenizer("0123456789", pad_token="<pad>").save_pretrained(tmp_path / "other")
    lm = build({"path": str(folder), "tokenizer": str(tmp_path / "other")}, seed=0, key="student")
    assert lm.vocab_size == 13
    assert lm.pad_id == 2


def test_gradient_checkpointing_gives_the_same_gradients(llama):
    ids, mask = torch.arange(8)[None], torch.ones((1, 8), dtype=torch.bool)
    gradients = []
    for on in (False, True):
        lm = build(llama | {"gradient_checkpointing": on}, seed=0, key="student")
        assert lm.model.model.layers[0].gradient_checkpointing == on
        lm.model.train()
        lm.head(lm.hidden(ids, mask)).logsumexp(-1).sum().backward()
        gradients.append([parameter.grad for parameter in lm.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_neither_and_both_sources_are_refused(llama):
    assert refusal({}).startswith("`student.path` must be ")
    assert refusal(llama | {"path": "gpt2"}, key="teacher").startswith("`teacher.path` must be ")


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "nope"},
        {"model_type": "vit"},
        {"hidden_size": "many"},
        {"num_key_value_heads": 3},
        {"hidden_act": "nope"},
    ],
)
def test_wrong_configurations(change, llama):
    assert refusal(llama | {"config": llama["config"] | change}).startswith("`student.config` must be ")


def test_missing_parts_of_a_configuration(llama):
    assert "model_type" in refusal(llama | {"config": {"hidden_size": 32}})
    assert refusal(llama | {"tokenizer": None}).startswith("`student.tokenizer` must be ")
    assert refusal(llama | {"tokenizer": "/nowhere"}).startswith("`student.tokenizer` must be ")


def test_missing_path_and_unreachable_hub_id():
    assert refusal({"path": "/nowhere"}).startswith("`student.path` must be ")
    message = refusal({"path": "no-such-owner/no-such-model"})
    assert message.startswith("`student.path` must be ")
    assert "hub id" in message


def test_truncated_weights_name_the_file(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    message = refusal({"path": str(folder)})
    assert message.startswith("`student.path` must be a complete safetensors file")
    assert str(file) in message


def test_corrupt_weights_name_the_file(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 4096)
    assert str(folder / "model.safetensors") in refusal({"path": str(folder)})


def test_a_missing_shard_is_named(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')
    assert "model-00002-of-00002.safetensors" in refusal({"path": str(folder)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_name_the_tensor(value, folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refusal({"path": str(folder)}, key="teacher")


def test_a_missing_tensor_is_named_not_drawn_at_random(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.norm.weight" in refusal({"path": str(folder)})


def test_weights_of_another_shape_are_refused(folder):
    edit(folder / "config.json", intermediate_size=64)
    message = refusal({"path": str(folder)})
    assert "model.layers.0.mlp.down_proj.weight" in message
    assert "[32, 48] in the file, [32, 64]" in message


def test_broken_configuration_file(folder):
    (folder / "config.json").write_text("{")
    assert refusal({"path": str(folder)}).startswith("`student.path` must be ")


def test_a_folder_without_a_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "tokenizer" in refusal({"path": str(folder)})


def test_pickled_weights_are_read_only_when_asked(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert "student.allow_pickle" in refusal({"path": str(folder)})
    lm = build({"path": str(folder), "allow_pickle": True}, seed=0, key="student")
    assert torch.equal(lm.model.lm_head.weight, tensors["lm_head.weight"])


def test_remote_code_runs_only_when_asked(folder, tmp_path):
    witness = tmp_path / "ran"
    code = f"""
from transformers import LlamaConfig, LlamaForCausalLM
open({str(witness)!r}, "w").close()
class OwnConfig(LlamaConfig):
    model_type = "own_llama"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
    (folder / "own.py").write_text(code)
    edit(
        folder / "config.json",
        model_type="own_llama",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    )
    assert refusal({"path": str(folder)}).startswith("`student.trust_remote_code` must be ")
    assert not witness.exists()


def test_flash_attention_without_its_package(folder):
    message = refusal({"path": str(folder), "attn_implementation": "flash_attention_2", "dtype": "bfloat16"})
    assert message.startswith("`student.attn_implementation` must be ")


def test_attention_falls_back_where_there_is_no_sdpa(folder, monkeypatch):
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "_supports_sdpa", False)
    lm = build({"path": str(folder), "attn_implementation": "sdpa"}, seed=0, key="student")
    assert lm.model.config._attn_implementation == "eager"
