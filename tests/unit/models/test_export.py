"""What is saved loads elsewhere and gives the same logits."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.models.build import build
from distill.models.export import save

IDS = torch.arange(6)[None]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_round_trip(llama, tmp_path, dtype, tied):
    spec = llama | {"config": llama["config"] | {"tie_word_embeddings": tied}, "dtype": dtype}
    lm = build(spec, seed=0, key="student")
    save(lm, tmp_path / "out" / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert loaded.dtype == getattr(torch, dtype)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert torch.equal(loaded(IDS).logits, lm.model(IDS).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert tokenizer("12+3=").input_ids == lm.tokenizer("12+3=").input_ids
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]
    assert not list((tmp_path / "out" / "model").glob("*.bin"))


def test_the_chat_template_is_kept(llama, tmp_path):
    lm = build(llama, seed=0, key="student")
    lm.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    save(lm, tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template == lm.tokenizer.chat_template


def test_an_earlier_model_is_replaced_whole(llama, tmp_path):
    save(build(llama, seed=0, key="student"), tmp_path / "model")
    (tmp_path / "model" / "stale.txt").touch()
    lm = build(llama, seed=1, key="student")
    save(lm, tmp_path / "model")
    assert not (tmp_path / "model" / "stale.txt").exists()
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "model")(IDS).logits, lm.model(IDS).logits)


def test_a_failure_keeps_the_earlier_model(llama, tmp_path, monkeypatch):
    lm = build(llama, seed=0, key="student")
    save(lm, tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()

    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lm.tokenizer, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        save(lm, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name != "tokenizer"] == ["model"]


def test_leftovers_of_a_killed_process_do_no_harm(llama, tmp_path):
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "model-00001-of-00002.safetensors").touch()
    save(build(llama, seed=0, key="student"), tmp_path / "model")
    assert not list((tmp_path / "model").glob("model-*"))
