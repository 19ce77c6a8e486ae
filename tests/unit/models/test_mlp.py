"""Perceptrons on pixels: what they compute, what they are built from, and that a folder gives them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification

from distill.errors import UserError
from distill.models.build_images import Pictures, build
from distill.models.export import save

DIGITS = Pictures((1, 4, 6), tuple("abc"))


def made(**config: Any) -> Any:
    spec = {"config": {"model_type": "mlp", **config}, "dtype": "float64"}
    return build(spec, seed=0, key="student", pictures=DIGITS)


def pixels() -> torch.Tensor:
    return torch.rand((5, 1, 4, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_it_is_layers_and_activations(activation: str) -> None:
    found = made(hidden_sizes=[7, 5], activation=activation)
    states = found.scale(pixels()).double().flatten(1)
    for layer in found.model.layers:
        states = states @ layer.weight.T + layer.bias
        states = states.relu() if activation == "relu" else states
    expected = states @ found.model.classifier.weight.T + found.model.classifier.bias
    torch.testing.assert_close(found.head(found.hidden(pixels())), expected, rtol=0, atol=1e-12)


def test_without_hidden_layers_it_is_softmax_regression() -> None:
    found = made(zero_init=True)
    assert [tuple(p.shape) for p in found.model.parameters()] == [(3, 24), (3,)]
    assert not any(p.any() for p in found.model.parameters())
    assert made().model.classifier.weight.any()
    assert [name for name, _ in made(bias=False).model.named_parameters()] == ["classifier.weight"]
    assert made(bias=False).head(made(bias=False).hidden(pixels())).shape == (5, 3)


def test_a_folder_gives_it_back(tmp_path: Path) -> None:
    found = made(hidden_sizes=[7], activation="identity")
    save(found, tmp_path / "model")
    read = AutoModelForImageClassification.from_pretrained(tmp_path / "model", dtype=torch.float64)
    inputs = found.scale(pixels()).double()
    assert torch.equal(read(pixel_values=inputs).logits, found.model(pixel_values=inputs).logits)
    assert (read.config.hidden_sizes, read.config.activation) == ([7], "identity")


@pytest.mark.parametrize("config", [{"activation": "gelu"}, {"zero_init": True, "hidden_sizes": [4]}])
def test_what_cannot_be_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"`student.config` must be a transformers configuration of an image classifier"
    ):
        made(**config)
