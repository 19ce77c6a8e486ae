"""A run small enough to repeat: an 8-wide student and a 16-wide teacher on two-digit addition."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from distill.config.schema import TrainConfig

TOKENIZER = "package://distill/assets/tokenizer"


def llama(hidden: int, layers: int = 2, tied: bool = True) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
    }


MEMBERS = {"wide": llama(16), "deep": llama(12, layers=3)}
ONLINE: dict[str, Any] = {
    "teacher": {"kind": "cotrained"},
    "objective": {"divergence": "forward_kl", "label_weight": 1.0},
    "online": {"lr": 3e-3, "export": True},
}
PEERS: dict[str, Any] = {
    "kind": "cotrained",
    "members": {name: {"config": size, "tokenizer": TOKENIZER} for name, size in MEMBERS.items()},
}
"""Two networks that learn beside the student."""
RECIPES: dict[str, dict[str, Any]] = {
    "opd": {
        "teacher": {"kind": "frozen"},
        "rollout": {"kind": "on_policy", "samples_per_prompt": 2},
        "objective": {"divergence": "reverse_kl"},
    },
    "sft": {"teacher": {"kind": "none"}, "objective": {"label_weight": 1.0, "logit_weight": 0.0}},
    "offline_kd": {
        "teacher": {"kind": "frozen"},
        "objective": {"divergence": "forward_kl", "label_weight": 0.5, "logit_weight": 0.5},
    },
    "speculative_kd": {
        "teacher": {"kind": "frozen"},
        "rollout": {"kind": "speculative", "samples_per_prompt": 2, "draft_length": 3, "accept_top_k": 4},
        "objective": {"divergence": "forward_kl"},
    },
    "self_distillation": {
        "teacher": {"kind": "self", "prompt": "{answer} {prompt}"},
        "rollout": {"kind": "on_policy", "samples_per_prompt": 2},
        "objective": {"divergence": "reverse_kl"},
        # Sharp enough for another prompt to make a difference.
        "student": {"config": {**llama(8), "initializer_range": 0.3}},
    },
    "online_kd": ONLINE,
    "multi_teacher": {
        "teacher": {"kind": "multi", "members": {"wide": {"weight": 2.0}, "deep": {"weight": 1.0}}},
        "objective": {"divergence": "forward_kl"},
    },
}
"""The sections each recipe sets, as plain values."""

VIT = {"model_type": "vit", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
# A bias of the keys shifts all scores alike: its gradient is rounding, and so would be what it counts as changed.
VIT |= {"patch_size": 2, "qkv_bias": False}
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
RESNET |= {"layer_type": "basic", "downsample_in_first_stage": False}
CONVNEXT = {"model_type": "convnext", "patch_size": 2, "num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]}
MOBILENET = {"model_type": "mobilenet_v2", "depth_multiplier": 0.1, "output_stride": 8}
IMAGES: dict[str, Any] = {
    "task": {"name": "image_classification"},
    "data": {"source": "digits", "batch_size": 12, "eval_size": 30, "pad_crop": 1, "flip": True},
    "student": {"config": VIT},
    "rollout": {},
}
"""The sections that make a recipe one of images, with what it draws at random; a teacher comes on top."""
SOFTMAX: dict[str, Any] = {"model_type": "mlp", "hidden_sizes": []}
REDUCED: dict[str, Any] = {
    "task": {"name": "image_classification"},
    "data": {"source": "digits", "batch_size": 12, "eval_size": 30, "mean": [0.0], "std": [1.0]},
    "student": {"config": SOFTMAX},
    "teacher": {"kind": "frozen", "config": SOFTMAX},
    "variance_reduction": {"weight": 0.5, "unbiased": True, "refresh_every_n_steps": 4},
    "optimizer": {"name": "sgd", "lr": 0.5, "weight_decay": 1e-3},
}
"""The sections of recipe=kd_variance, on top of those of `sft`. The teacher is the student's start."""
SWITCHED: dict[str, Any] = {
    "online": ONLINE["online"] | {"method": "switokd"},
    # Sharp enough for the teacher to pause at some positions and not at others.
    "teacher": {"kind": "cotrained", "config": {**llama(16), "initializer_range": 0.5}, "tokenizer": TOKENIZER},
    "student": {"config": {**llama(8), "initializer_range": 0.5}, "tokenizer": TOKENIZER},
}
COLLECTED: dict[str, Any] = {"online": ONLINE["online"] | {"method": "kdcl", "ensemble": "min_logit"}, "teacher": PEERS}
"""Sections that make another method of recipe=online_kd: SwitOKD, and KDCL of three networks."""
SHARP = {"kind": "cotrained", "config": {**llama(16), "initializer_range": 0.1}, "tokenizer": TOKENIZER}
ADAPTED: dict[str, Any] = {
    "teacher": SHARP | {"lora": {"r": 2, "alpha": 4.0}},
    "objective": {"divergence": "forward_kl", "label_weight": 0.0},
    "online": ONLINE["online"] | {"label_weight": 1.0, "logit_weight": 0.1},
}
"""Sections that make `online_kd` the recipe online_lora."""
PICTURED_ONLINE = IMAGES | {"teacher": {"kind": "cotrained", "config": CONVNEXT}}
SEGFORMER: dict[str, Any] = {"model_type": "segformer", "num_encoder_blocks": 2, "hidden_sizes": [8, 16]}
SEGFORMER |= {"depths": [1, 1], "sr_ratios": [2, 1], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
SEGFORMER |= {"patch_sizes": [3, 3], "strides": [2, 2], "decoder_hidden_size": 16}
# What is drawn at random in a forward pass is drawn anew by each rank.
SEGFORMER |= {"drop_path_rate": 0.0, "classifier_dropout_prob": 0.0, "initializer_range": 0.1}
MASKS: dict[str, Any] = {
    "task": {"name": "semantic_segmentation"},
    "data": {"source": "scenes", "image_size": 16, "batch_size": 12, "eval_size": 7, "pad_crop": 3, "flip": True},
    "student": {"config": SEGFORMER, "frozen_batch_norm": True},
    "rollout": {},
    "teacher": {"kind": "frozen", "config": {**SEGFORMER, "decoder_hidden_size": 24}},
}
"""The sections that make `offline_kd` one of pixels; what is drawn around an image has no class, so that masks have
different numbers of targets."""
PICTURED = {"sft": IMAGES, "offline_kd": IMAGES | {"teacher": {"kind": "frozen", "config": RESNET}}}


def config(recipe: str = "opd", **changes: Any) -> dict[str, Any]:
    """A validated configuration; ``changes`` are dotted keys with ``__`` for the dot."""
    values: dict[str, Any] = copy.deepcopy(RECIPES[recipe])
    values["run_name"] = recipe
    values["data"] = {"batch_size": 12, "digits": 2, "eval_size": 8}
    values["student"] = {"config": llama(8), "tokenizer": TOKENIZER} | values.get("student", {})
    if values["teacher"]["kind"] in ("frozen", "cotrained"):
        values["teacher"] |= {"config": llama(16), "tokenizer": TOKENIZER}
    if values["teacher"]["kind"] == "multi":
        # Sharp enough to disagree.
        sizes = {name: {**size, "initializer_range": 0.3} for name, size in MEMBERS.items()}
        values["teacher"]["members"] = {
            name: member | {"config": sizes[name], "tokenizer": TOKENIZER}
            for name, member in values["teacher"]["members"].items()
        }
    values.setdefault("rollout", {})["max_new_tokens"] = 5
    values["optimizer"] = {"lr": 1e-2}
    values["trainer"] = {"max_steps": 6}
    values["callbacks"] = {"sparsity": {"every_n_steps": 3}, "checkpoint": {"every_n_steps": 2}}
    values["logger"] = {"progress": "off"}
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        section = values
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = copy.deepcopy(value)
    return TrainConfig(**values).model_dump(by_alias=True)


def metrics(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
