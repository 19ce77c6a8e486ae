"""Parameter name → (group, layer, module), for the tables by group, layer and module.

Works on names, not on model classes, so that it also reads checkpoints whose architecture is not known here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

GROUPS = ("attention", "mlp", "convolution", "embedding", "lm_head", "classifier", "norm", "other")
EXTRAPOLATED = ("attention", "mlp")
"""Groups that EffOPD (arXiv 2605.11739) moves along their update."""

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_STAGE = re.compile(r"(?:^|\.)stages\.(\d+)\.")
"""Convolutional networks number the blocks of each stage anew: their layers are the stages."""
_NORM = re.compile(r"norm|^ln(_|\d|$)", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_MLP_PARENTS = {"mlp", "ffn", "feed_forward", "experts", "shared_expert", "shared_experts", "moe", "block_sparse_moe"}
_MLP = {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "w1", "w2", "w3", "c_fc"}
_MLP |= {"dense_h_to_4h", "dense_4h_to_h", "fc_in", "fc_out"}
_ATTENTION_LEAVES = {
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "qkv_proj",
    "query_key_value",
    "c_attn",
    "wq",
    "wk",
    "wv",
    "wo",
}
_EMBEDDING = {"wte", "wpe", "embed_in", "tok_embeddings"}
_HEAD = {"lm_head", "embed_out", "output"}
_ROUTERS = {"gate", "router", "shared_expert_gate"}
_VISION = {"visual", "vision_tower", "vision_model"}
_AMBIGUOUS = {"c_proj", "convolution", "normalization"}
_CONVOLUTIONS = {"convolution", "dwconv", "pwconv1", "pwconv2", "conv1", "conv2", "conv3", "downsampling_layer"}
_TOKENS = {"cls_token", "mask_token", "distillation_token"}
_IMAGE_MODELS = {
    *("beit", "bit", "convnext", "convnextv2", "cvt", "data2vec_vision", "deit", "dinat", "dinov2", "donut"),
    *("dinov2_with_registers", "efficientnet", "focalnet", "hgnet_v2", "hiera", "ijepa", "levit", "mobilenet_v1"),
    *("mobilenet_v2", "mobilevit", "mobilevitv2", "poolformer", "pvt", "pvt_v2", "regnet", "resnet", "segformer"),
    *("swiftformer", "swin", "swinv2", "textnet", "vit", "vit_msn", "dpt", "decode_head", "auxiliary_head"),
}
"""What names of image models begin with: their families' own words are looked at beside those of language models."""
_CLASSIFIERS = {"fc", "dist_head"}
_IMAGE_EMBEDDINGS = {"embedding", "convolution_embeddings", "patch_embedding", "stem"}
_IMAGE_ATTENTION = {"modulation", "queries_keys_values", "keys_values", "queries", "projection", "attention_biases"}
"""Focal modulation, which stands in for attention, and LeViT's."""
_IMAGE_MLP = {"intermediate", "output", "linear_up", "linear_down", "linear_projections"}
_IMAGE_CONVOLUTIONS = {"linear_fuse", "downsample", "squeeze_excite", "focal_layers", "projection_context", "network"}
_STEMS = {"patch_embeddings", "patch_embed", "embedder", "conv_stem"}
"""What turns an image into the first states: patches, or the convolutions before the first stage."""


class Place(NamedTuple):
    """Where a parameter sits. ``layer`` is None outside the blocks (of a convolutional network: the stages); ``module``
    is unique within a layer's table (GPT-2's two ``c_proj`` become ``attn.c_proj`` and ``mlp.c_proj``; the experts of a
    layer share one name, as the blocks of a stage do)."""

    group: str
    layer: int | None
    module: str


def place(name: str) -> Place:
    """Group, layer and module of one parameter.

    Norms inside attention (``q_norm``) are norms; routers of mixtures of experts and everything of a vision tower are
    ``other``, the latter without a layer, since its block numbers are not the decoder's.

    >>> place("model.layers.3.self_attn.q_proj.weight")
    Place(group='attention', layer=3, module='q_proj')
    """
    parts = name.split(".")
    if len(parts) > 1 and parts[-1] in {"weight", "bias"}:
        parts.pop()
    *parents, leaf = parts
    if _VISION & set(parents):
        return Place("other", None, leaf)
    if parents[:1] == ["regnet"] and "attention" in parents:
        # Its squeeze and excitation, of two 1x1 convolutions.
        parents = ["squeeze_excite"]
    found = _STAGE.search(name) or _LAYER.search(name)
    group = _group(parents, leaf)
    if group == "other" and parts[0] in _IMAGE_MODELS:
        group = _of_images(parents, leaf)
    module = f"{parents[-1]}.{leaf}" if parents and (leaf in _AMBIGUOUS or leaf.isdigit()) else leaf
    return Place(group, int(found[1]) if found else None, module)


def _of_images(parents: list[str], leaf: str) -> str:
    """By the words of image models, where those of language models say nothing."""
    inside = {*parents, leaf}
    if "layer_scale" in leaf:
        return "other"
    if leaf.endswith("bn") or leaf in {"grn", "rbr_identity"}:
        return "norm"
    if leaf.endswith("_tokens") or _IMAGE_EMBEDDINGS & inside:
        return "embedding"
    if "conv" in leaf or _IMAGE_CONVOLUTIONS & inside:
        return "convolution"
    if _IMAGE_ATTENTION & inside:
        return "attention"
    return "mlp" if _IMAGE_MLP & inside else "other"


def _group(parents: list[str], leaf: str) -> str:
    # ConvNeXt's two have numbers for names: a norm, and the convolution behind it.
    if _NORM.search(leaf) or (leaf == "0" and parents[-1:] == ["downsampling_layer"]):
        return "norm"
    if leaf in _ROUTERS:
        return "other"
    if leaf in _HEAD:
        return "lm_head"
    if leaf.endswith("classifier") or "classifier" in parents or (not parents and leaf in _CLASSIFIERS):
        return "classifier"
    if leaf in _EMBEDDING | _TOKENS or "embed" in leaf or _STEMS & set(parents):
        return "embedding"
    if _CONVOLUTIONS & {leaf, *parents[-1:]}:
        return "convolution"
    if leaf in _MLP or _MLP_PARENTS & set(parents):
        return "mlp"
    if leaf in _ATTENTION_LEAVES or any(_ATTENTION.search(parent) for parent in parents):
        return "attention"
    return "other"
