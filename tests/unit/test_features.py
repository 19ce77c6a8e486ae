"""Where two networks describe the same places: maps of any sizes, patches of transformers, positions of texts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distill import images, taps
from distill.config.schema_adm import Adm
from distill.errors import UserError
from distill.features import FeatureTerms
from distill.losses import agreement
from distill.models import build_images
from distill.models.build import build
from distill.models.build_images import Pictures
from distill.types import Row, collate
from tests import tiny

PICTURES = Pictures((1, 8, 8), tuple("0123456789"))
STAGE = "resnet.encoder.stages.0"
HEADS = {"model_type": "qwen3", "head_dim": 4}


def image_model(config: dict[str, Any], seed: int = 0) -> Any:
    spec = {"path": None, "config": config, "dtype": "float64"}
    return build_images.build(spec, seed=seed, key="student", pictures=PICTURES)


def text_model(config: dict[str, Any], seed: int = 0, **changes: Any) -> Any:
    spec = {"path": None, "config": config, "tokenizer": tiny.TOKENIZER, "dtype": "float64"}
    return build(spec | changes, seed=seed, key="student")


def terms(student: Any, teacher: Any, **options: Any) -> FeatureTerms:
    return FeatureTerms(student, teacher, Adm(**options).model_dump())


def batch() -> images.ImageBatch:
    generator = torch.Generator().manual_seed(0)
    rows = [images.ImageRow(i, torch.rand(1, 8, 8, generator=generator), i) for i in range(3)]
    return images.collate(rows, 3)


def directed(raw: Tensor, found: Any) -> Tensor:
    return agreement.directions(raw, agreement.usual(raw, found.sample, found.count))


def read(found: FeatureTerms, given: Any) -> Any:
    with found.watching():
        for network in found.networks.values():
            network.signal(given)
        return found.described(given), found(given)


def grid_of_patches(network: Any, given: images.ImageBatch) -> Tensor:
    """The patches' states ``[B, P, H]`` of a ViT, whose first token is the class's."""
    states: Tensor = network.model.vit(pixel_values=network.scale(given.pixels).double()).last_hidden_state
    return states[:, 1:]


def test_patches_and_a_larger_map_are_compared_place_by_place() -> None:
    """The map of 2×2 is the smaller; each of its places has four of the ViT's 4×4 patches."""
    student, teacher = image_model(tiny.VIT), image_model(tiny.RESNET, seed=1)
    options = {"description": "channels", "center": False, "temperature": 0.1}
    found, (term, sums, _) = read(terms(student, teacher, teacher_layer=STAGE, **options), batch())
    assert found.shape == (2, 2)
    patches = grid_of_patches(student, batch())
    by_hand = torch.stack(
        [
            patches[b].reshape(4, 4, -1)[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((0, 1))
            for b in range(3)
            for i in range(2)
            for j in range(2)
        ]
    )
    torch.testing.assert_close(found.student, directed(by_hand, found))
    assert found.sample.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    expected = 0.0
    for b in range(3):
        own = [s @ t for s, t in zip(found.student, found.teacher, strict=True)][4 * b :][:4]
        weights = torch.softmax(torch.stack(own) / 0.1, 0)
        expected += float((weights * (1 - torch.stack(own))).sum().detach())
    assert float(term.detach()) == pytest.approx(expected, rel=1e-12)
    assert float(sums["consensus"]) == pytest.approx(expected, rel=1e-12)


def test_classes_of_each_place() -> None:
    student, teacher = image_model(tiny.CONVNEXT), image_model(tiny.CONVNEXT, seed=1)
    found, _ = read(terms(student, teacher, description="classes", center=False), batch())
    assert found.student.shape == (3 * 4, 10)
    features = student.model.base_model(pixel_values=student.scale(batch().pixels).double()).last_hidden_state
    raw = student.head(features.flatten(2).transpose(1, 2).flatten(0, 1))
    torch.testing.assert_close(found.student, directed(raw, found))


def test_pixels_know_their_image() -> None:
    masks = torch.full((2, 2, 2), images.IGNORED)
    masks[0, 0], masks[1, 1, 1] = 3, 4
    found = images.MaskBatch(torch.zeros(2, 1, 2, 2), masks, torch.arange(2), 3)
    assert found.targets.tolist() == [3, 3, 4]
    assert found.rows.tolist() == [0, 0, 1]


def test_widths_that_differ_are_means_of_neighbouring_channels() -> None:
    student, teacher = image_model(tiny.VIT), image_model({**tiny.VIT, "hidden_size": 16}, seed=1)
    found, _ = read(terms(student, teacher, description="channels", center=False), batch())
    patches = grid_of_patches(teacher, batch())
    torch.testing.assert_close(found.teacher, directed(patches.reshape(-1, 8, 2).mean(-1), found))


@pytest.mark.parametrize("center", [False, True])
def test_relations_of_networks_of_other_widths(center: bool) -> None:
    student, teacher = image_model(tiny.VIT), image_model({**tiny.VIT, "hidden_size": 16}, seed=1)
    found, _ = read(terms(student, teacher, center=center), batch())
    for network, described in ((student, found.student), (teacher, found.teacher)):
        patches = grid_of_patches(network, batch())
        free = patches - patches.mean(1, keepdim=True) * center
        each = torch.nn.functional.cosine_similarity(free[:, :, None], free[:, None], dim=-1)
        rows = (each - torch.eye(each.shape[1])).flatten(0, 1)
        expected = torch.nn.functional.normalize(rows, dim=-1)
        torch.testing.assert_close(described, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("description", ["channels", "relations"])
def test_texts_are_compared_at_their_targets_and_count_by_them(description: Any) -> None:
    student, teacher = (text_model(tiny.llama(size), s) for s, size in enumerate((8, 16)))
    rows = [Row(0, torch.tensor([3, 4, 5, 6, 7]), torch.tensor([False, False, True, True, True]))]
    rows += [Row(1, torch.tensor([3, 4, 5]), torch.tensor([False, True, False]))]
    both = collate(rows, 0, 4, False)
    options = {"description": description, "center": True}
    whole, (_, sums, _) = read(terms(student, teacher, **options), both)
    assert whole.sample.tolist() == [0, 0, 0, 1]
    assert whole.shape is None
    apart = [read(terms(student, teacher, **options), collate([row], 0, 4, False))[1][1] for row in rows]
    for key in ("consensus", "agreement"):
        assert float(sums[key]) == pytest.approx(sum(float(one[key]) for one in apart), rel=1e-10)
    # The only location of a sample is what all of its locations have in common.
    assert float(apart[1]["agreement"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`adm.teacher_layer` must be a layer whose feature map has more than one place"),
        ({"teacher_layer": "resnet.encodr"}, "did you mean 'resnet.encoder'?"),
        (
            {"teacher_layer": STAGE, "description": "classes"},
            "`adm.description` must be 'relations' or 'channels' with this adm.teacher_layer",
        ),
        (
            {"teacher_layer": STAGE, "student_layer": "vit.layernorm_"},
            "`adm.student_layer` must be the name of a module",
        ),
        ({"teacher_layer": "resnet.pooler"}, "more than one place"),
    ],
)
def test_layers_that_cannot_be_compared_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as found:
        terms(image_model(tiny.VIT), image_model(tiny.RESNET), **options)
    assert message in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ("lm_head", "a module that runs in a forward pass, but is 'lm_head'"),
        ("model.layers.0.self_attn.q_norm", "a state for each token (of [2, 5] tokens it has [2, 5, 2, 4])"),
        ("model.layer", "did you mean 'model.layers'?"),
        ("transformer.h.0", "inside of the model (it has model, lm_head), but is 'transformer.h.0'"),
        (f"model.{'x' * 30}.0", "(model has embed_tokens, layers, norm, rotary_emb)"),
    ],
)
def test_layers_of_texts_are_looked_at_before_training(layer: str, says: str) -> None:
    student, teacher = (text_model(config) for config in (tiny.llama(8), tiny.llama(8) | HEADS))
    terms(student, teacher, teacher_layer="model.layers.0", student_layer="model.layers.0.mlp.gate_proj")
    with pytest.raises(UserError, match=r"^`adm.teacher_layer` must be") as found:
        terms(student, teacher, teacher_layer=layer)
    assert says in str(found.value)


@pytest.mark.parametrize("layer", ["model.layers.1", "model.layers.1.mlp.down_proj"])
def test_a_layer_has_the_name_that_it_has_without_an_adapter(layer: str) -> None:
    """What is compared is what it gives with the adapter, which learns."""
    lora = {"r": 2, "alpha": 4.0, "dropout": 0.0, "target_modules": ["down_proj"]}
    student, teacher = (text_model(tiny.llama(8), **extra) for extra in ({"lora": lora}, {}))
    adapter = {name: p for name, p in student.model.named_parameters() if p.requires_grad}
    [last] = [p for name, p in adapter.items() if "layers.1" in name and "lora_B" in name]
    torch.nn.init.ones_(last)
    found = terms(student, teacher, student_layer=layer, teacher_layer=layer)
    row = Row(0, torch.tensor([3, 4, 5, 6]), torch.tensor([False, True, True, True]))
    described, (term, *_) = read(found, collate([row], 0, 3, False))
    assert not torch.allclose(described.student, described.teacher)
    assert bool(torch.autograd.grad(term, last)[0].any())


def test_a_teacher_that_learns_is_pushed_and_nothing_reaches_the_other() -> None:
    student, teacher = image_model(tiny.VIT), image_model({**tiny.VIT, "hidden_size": 16}, seed=1)
    for model in (student.model, teacher.model):
        model.requires_grad_(True)
    given = batch()
    options = {"center": False, "temperature": None, "margin": -1.0}
    found, (_, sums, _) = read(terms(student, teacher, **options, divergence=2.0), given)
    cosine = (found.student * found.teacher).sum(1).detach()
    assert float(sums["divergence"]) == pytest.approx(float((cosine + 1).mean()) * 3, rel=1e-12)
    for weights, moved, still in (((1.0, 0.0), student, teacher), ((0.0, 2.0), teacher, student)):
        _, (term, *_) = read(terms(student, teacher, **options, consensus=weights[0], divergence=weights[1]), given)
        for model, there in ((moved.model, True), (still.model, False)):
            gradients = torch.autograd.grad(term, list(model.parameters()), allow_unused=True, retain_graph=True)
            assert any(g is not None and bool(g.any()) for g in gradients) == there


def test_nothing_is_held_outside() -> None:
    layer = torch.nn.Linear(2, 2)
    watched = taps.Taps({"it": layer})
    with watched.open():
        layer(torch.ones(1, 2))
        assert watched["it"].shape == (1, 2)
    assert not layer._forward_hooks
    with pytest.raises(KeyError):
        watched["it"]
