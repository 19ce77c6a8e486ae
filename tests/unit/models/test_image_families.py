"""The families of transformers' image classifiers: drawn, trained, saved and loaded, or refused in one line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from distill.analysis.naming import place
from distill.errors import UserError
from distill.models.build_images import Pictures, build
from distill.models.export import save
from distill.models.image_config import drawn

PICTURES = Pictures((3, 32, 32), tuple("abcde"))
PATCHED: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHED |= {"patch_size": 4}
STAGED: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1]}
NEXT = {**STAGED, "patch_size": 2, "num_stages": 2}
WINDOWED = {"patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}
PYRAMID: dict[str, Any] = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4}
PYRAMID |= {"mlp_ratios": [1] * 4}
READ: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("beit", "data2vec-vision", "deit", "dinov2", "dinov2_with_registers", "ijepa", "vit"), PATCHED),
    "vit_msn": PATCHED,
    **{family: {"vision_config": PATCHED} for family in ("clip", "metaclip_2", "siglip")},
    **dict.fromkeys(("swin", "swinv2", "donut-swin"), WINDOWED),
    **dict.fromkeys(("pvt", "pvt_v2", "segformer"), PYRAMID),
    "bit": {**STAGED, "embedding_size": 8, "num_groups": 4},
    "convnext": NEXT,
    "convnextv2": NEXT,
    "cvt": {"embed_dim": [8, 8, 8], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128},
    "focalnet": {**WINDOWED, "focal_levels": [1, 1], "focal_windows": [3, 3]},
    "hiera": {
        **{"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "patch_size": [4, 4], "patch_stride": [4, 4]},
        **{"patch_padding": [0, 0], "query_stride": [2, 2], "num_query_pool": 1, "masked_unit_size": [2, 2]},
    },
    "levit": {**{"hidden_sizes": [8] * 3, "depths": [1] * 3, "num_attention_heads": [1] * 3}, "key_dim": [4] * 3},
    "mobilenet_v1": {"depth_multiplier": 0.1},
    "mobilenet_v2": {"depth_multiplier": 0.1, "output_stride": 8},
    "mobilevit": {"hidden_sizes": [8] * 3, "neck_hidden_sizes": [4, 4, *[8] * 5], "num_attention_heads": 2},
    "poolformer": {**STAGED, **{"num_encoder_blocks": 2, "patch_sizes": [3, 3], "strides": [2, 2], "padding": [1, 1]}},
    "regnet": {**STAGED, "embedding_size": 8, "groups_width": 8},
    "resnet": {**STAGED, "embedding_size": 8, "layer_type": "basic"},
    "swiftformer": {"depths": [1] * 4, "embed_dims": [8] * 4, "mlp_ratio": 2},
    "textnet": {"stem_out_channels": 8, "hidden_sizes": [8] * 5},
}
"""Families that learn, as small as they get."""
REFUSED: dict[str, dict[str, Any]] = {
    "cvt": {"embed_dim": [8], "num_heads": [1], "depth": [1, 1]},
    "imagegpt": {"n_embd": 8, "n_layer": 1, "n_head": 2},
    "mobilevitv2": {"width_multiplier": 0.25},
    "pp_lcnet": {"scale": 0.25, "class_expand": 32},
    "siglip2": {"vision_config": PATCHED},
}
"""Families that read something else than pixels, say something else than logits, or do not fit together."""
ELSEWHERE = {"dinat", "timm_wrapper", "hgnet_v2", "perceiver", "shieldgemma2", "mobilevitv2"}
"""Those that need a library of their own, do not get small, or are language models."""


def made(family: str, config: dict[str, Any]) -> Any:
    spec = {"config": {"model_type": family, **config}, "new_head": False}
    return build(spec, seed=0, key="student", pictures=PICTURES)


def test_every_family_is_looked_at() -> None:
    known = set(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)
    assert known - set(READ) - set(REFUSED) - ELSEWHERE - {"mlp"} == set()


@pytest.mark.parametrize("family", READ)
def test_a_family_learns_and_is_loaded_again(family: str, tmp_path: Path) -> None:
    found = made(family, READ[family])
    images = torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    found.model.train()
    trained = [parameter for parameter in found.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    logits = found.head(found.hidden(images))
    assert logits.shape == (4, 5)
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert [name for name, p in found.model.named_parameters() if p.requires_grad and p.grad is None] == []
    optimizer.step()
    assert all(math.isfinite(float(parameter.detach().sum())) for parameter in trained)
    save(found, tmp_path / "model")
    found.model.eval()
    for pictures in (PICTURES, None):
        again = build({"path": str(tmp_path / "model")}, seed=1, key="checkpoint", pictures=pictures)
        again.model.eval()
        assert again.shape == (3, 32, 32)
        torch.testing.assert_close(again.head(again.hidden(images)), found.head(found.hidden(images)))


UNDECIDED = {"head", "layers.0.proj"}
"""SwiftFormer's head, called as RWKV's, and the way around Hiera's pooling."""
KINDS = {
    torch.nn.Linear: {"attention", "mlp", "convolution", "embedding", "classifier"},
    torch.nn.Conv2d: {"convolution", "embedding", "attention", "mlp"},
    torch.nn.Embedding: {"embedding"},
    torch.nn.LayerNorm: {"norm"},
    torch.nn.GroupNorm: {"norm"},
    torch.nn.BatchNorm2d: {"norm"},
}
"""Module types, and the groups that their weights may be in: names are judged by types, and need none."""


@pytest.mark.parametrize("family", [name for name, config in READ.items() if "vision_config" not in config])
def test_the_group_of_a_name_suits_the_type_of_its_module(family: str) -> None:
    with torch.device("meta"):
        found = AutoModelForImageClassification.from_config(
            drawn({"model_type": family, **READ[family]}, PICTURES, "student")
        )
    # The convolutions of SwiftFormer's patches are numbered together with their norms.
    modules = [(name, module) for name, module in found.named_modules() if "patch_embed.patch_embedding" not in name]
    wrong = {
        name: (type(module).__name__, place(f"{name}.weight").group)
        for name, module in modules
        for kind, groups in KINDS.items()
        if isinstance(module, kind) and not name.endswith(tuple(UNDECIDED))
        if place(f"{name}.weight").group not in groups
    }
    assert wrong == {}


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_does_not_fit_is_refused_in_one_line(family: str) -> None:
    with pytest.raises(UserError, match=r"`student\.config` must be") as error:
        made(family, REFUSED[family])
    assert "\n" not in str(error.value)
