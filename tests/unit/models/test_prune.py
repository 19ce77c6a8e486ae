"""Layers dropped from a pretrained model: what is left computes what those layers compute, caches and reloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from distill.errors import UserError
from distill.models.build import build
from distill.models.export import save
from distill.rollouts.decode import Sampling, generate

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 3, "sliding_window": 8},
    "gemma3_text": {"sliding_window": 8, "sliding_window_pattern": 2},
    "gpt2": {"n_embd": 32, "n_layer": 6, "n_head": 4, "n_positions": 64},
    "gpt_neo": {"hidden_size": 32, "num_layers": 6, "num_heads": 4, "attention_types": [[["global", "local"], 3]]}
    | {"max_position_embeddings": 64, "window_size": 8},
}
OWN_NAMES = ("gpt2", "gpt_neo")
IDS, MASK = torch.arange(3, 15)[None], torch.ones((1, 12), dtype=torch.bool)


@pytest.fixture(params=FAMILIES)
def deep(request: pytest.FixtureRequest, llama: dict[str, Any]) -> dict[str, Any]:
    """Six layers, each of its own weights."""
    sizes = {} if request.param in OWN_NAMES else llama["config"] | {"num_hidden_layers": 6}
    return llama | {"config": sizes | {"model_type": request.param} | FAMILIES[request.param]}


def logits(lm: Any) -> torch.Tensor:
    lm.model.eval()
    with torch.no_grad():
        return lm.head(lm.hidden(IDS, MASK))


def test_what_is_left_are_the_layers_that_were_asked_for(deep: dict[str, Any]) -> None:
    whole = build(deep, seed=0, key="student")
    pruned = build(deep | {"layers": [0, 3, 5]}, seed=0, key="student")
    before, after = whole.model.state_dict(), pruned.model.state_dict()
    stack = "transformer.h" if deep["config"]["model_type"] in OWN_NAMES else "model.layers"
    for new, old in enumerate([0, 3, 5]):
        names = [name for name in before if name.startswith(f"{stack}.{old}.")]
        assert names
        for name in names:
            assert torch.equal(after[name.replace(f"{stack}.{old}.", f"{stack}.{new}.")], before[name])
    assert not [name for name in after if name.startswith(f"{stack}.3.")]
    assert not torch.equal(logits(pruned), logits(whole))
    assert torch.equal(logits(build(deep | {"layers": list(range(6))}, seed=0, key="student")), logits(whole))


def test_the_cache_of_a_pruned_model_changes_nothing(deep: dict[str, Any]) -> None:
    """Greedy tokens with a cache are those that whole passes over the growing text give."""
    lm = build(deep | {"layers": [1, 4]}, seed=0, key="student")
    greedy = Sampling(temperature=0.0, max_new_tokens=10)
    [found] = generate(lm, [tuple(range(3, 9))], greedy, [0])
    ids = list(range(3, 9))
    for token in found.ids:
        text = torch.tensor([ids])
        with torch.no_grad():
            expected = int(lm.head(lm.hidden(text, torch.ones_like(text, dtype=torch.bool)))[0, -1].argmax())
        assert token == expected
        ids.append(token)


def test_it_is_exported_as_a_model_of_that_depth(deep: dict[str, Any], tmp_path: Path) -> None:
    lm = build(deep | {"layers": [0, 2, 5]}, seed=0, key="student")
    save(lm, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.config.num_hidden_layers == 3
    again = build({"path": str(tmp_path / "model")}, seed=0, key="student")
    torch.testing.assert_close(logits(again), logits(lm))


ODD: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "scale_attn_by_inverse_layer_idx": True},
    "qwen2_moe": {"mlp_only_layers": [1], "num_experts": 4, "moe_intermediate_size": 16},
}


@pytest.mark.parametrize("family", ODD)
def test_layers_that_are_made_by_their_numbers_are_not_pruned(family: str, llama: dict[str, Any]) -> None:
    """What was exported would be another model, or none."""
    sizes = llama["config"] | {"num_hidden_layers": 4} if family == "qwen2_moe" else {}
    spec = llama | {"config": sizes | {"model_type": family} | ODD[family], "layers": [1, 3]}
    with pytest.raises(UserError, match=rf"`student.layers` must be null for a model of type '{family}' \(") as found:
        build(spec, seed=0, key="student")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("layers", [[], [0, 6], [-1, 2], [2, 1], [1, 1]])
def test_numbers_that_make_no_sense(layers: list[int], deep: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"`student.layers` must be increasing numbers from 0 to 5"):
        build(deep | {"layers": layers}, seed=0, key="student")
