"""The fingerprint of weights: blind to how they are stored, sensitive to every bf16 step."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from distill.analysis.fingerprint import fingerprint, of_folder, of_model
from distill.analysis.source import Folder

EMBED, HEAD, LAYER, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.a.weight", "model.norm.weight"


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {EMBED: torch.randn(5, 4, generator=generator), LAYER: torch.randn(3, 1, 2, 2, generator=generator)}
    found |= {NORM: torch.ones(4), "model.scale": torch.tensor(0.5), "model.nothing": torch.zeros(0, 2)}
    return {name: tensor.bfloat16().float() for name, tensor in found.items()}


BASE = fingerprint(weights().items())


def test_is_what_its_definition_says() -> None:
    lines = []
    for name, tensor in weights().items():
        content = hashlib.sha256(tensor.bfloat16().view(torch.int16).numpy().tobytes()).hexdigest()
        shape = "x".join(str(size) for size in tensor.shape) or "-"
        lines.append(f"{name.removeprefix('model.')} {shape} {content}\n")
    assert hashlib.sha256("".join(sorted(lines)).encode()).hexdigest() == BASE


@pytest.mark.parametrize(
    "change",
    [
        lambda found: dict(reversed(found.items())),
        lambda found: {name: tensor.bfloat16() for name, tensor in found.items()},
        lambda found: {name: tensor.double() for name, tensor in found.items()},
        lambda found: {name: tensor * (1 + 2**-12) for name, tensor in found.items()},
        lambda found: found | {HEAD: found[EMBED].clone()},
        lambda found: {f"language_model.{name}": tensor for name, tensor in found.items()},
        lambda found: {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in found.items()},
        lambda found: found | {"model.steps": torch.arange(3), "model.rotary_emb.inv_freq": torch.ones(2)},
        lambda found: found | {EMBED: found[EMBED].t().contiguous().t()},
    ],
    ids=[
        "order",
        "bf16",
        "fp64",
        "below a bf16 step",
        "tied head stored",
        "wrapped",
        "wrapped inside",
        "buffers",
        "view",
    ],
)
def test_ignores_how_the_weights_are_stored(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    assert fingerprint(change(weights()).items()) == BASE


def step(found: dict[str, Tensor]) -> dict[str, Tensor]:
    bits = found[LAYER].bfloat16().view(torch.int16)
    bits.view(-1)[-1] += 1
    return found | {LAYER: bits.view(torch.bfloat16)}


@pytest.mark.parametrize(
    "change",
    [
        step,
        lambda found: found | {LAYER: found[LAYER].reshape(3, 4)},
        lambda found: found | {HEAD: found[EMBED] + 1},
        lambda found: {name: tensor for name, tensor in found.items() if name != "model.nothing"},
        lambda found: {name.replace("norm", "gnorm"): tensor for name, tensor in found.items()},
        lambda found: found | {"model.scale": torch.tensor([0.5])},
    ],
    ids=["one bf16 step", "shape", "a head of its own", "one tensor less", "name", "scalar or vector"],
)
def test_notices(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    assert fingerprint(change(weights()).items()) != BASE


def test_names_that_prefixes_alone_keep_apart_stay_apart() -> None:
    one, other = torch.tensor([1.0]), torch.tensor([2.0])
    assert fingerprint({"model.a": one, "a": other}.items()) != fingerprint({"model.a": other, "a": one}.items())


def test_more_than_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.analysis.fingerprint._PIECE", 7)
    assert fingerprint(weights().items()) == BASE


def sharded(path: Path, found: dict[str, Tensor]) -> Path:
    path.mkdir()
    files = {name: f"model-{number:05d}-of-{len(found):05d}.safetensors" for number, name in enumerate(found)}
    for name, file in files.items():
        save_file({name: found[name]}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return path


def test_of_a_folder_in_shards(tmp_path: Path) -> None:
    with Folder(sharded(tmp_path / "model", weights()), "source") as folder:
        assert of_folder(folder) == BASE


def llama(tie: bool) -> LlamaForCausalLM:
    sizes = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=tie))


@pytest.mark.parametrize("tie", [True, False])
def test_of_a_live_model_and_of_its_folder(tmp_path: Path, tie: bool) -> None:
    model = llama(tie)
    expected = of_model(model)
    model.save_pretrained(tmp_path / "fp32")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "bf16", max_shard_size=300)
    assert len([*(tmp_path / "bf16").glob("*.safetensors")]) > 1
    for name in ("fp32", "bf16"):
        with Folder(tmp_path / name, "source") as folder:
            assert of_folder(folder) == expected
        assert of_model(AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)) == expected
    with torch.no_grad():
        model.model.norm.weight[1] += 2**-7
    assert of_model(model) != expected


def test_of_a_live_model_with_an_adapter() -> None:
    peft = pytest.importorskip("peft")
    model = llama(tie=True)
    expected = of_model(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert of_model(adapted) == expected
