"""A shallower student: some of a pretrained model's layers, renumbered."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from distill.errors import UserError

PER_LAYER = ("layer_types", "attention_layers", "layers_block_type", "mlp_layer_types", "no_rope_layers")
"""Lists of a configuration that have an entry for each layer."""
NUMBERS = ("layer_idx", "layer_id")
"""Attributes of a layer's modules under which they find their part of a KV cache."""
BY_NUMBER = "scale_attn_by_inverse_layer_idx"
"""A setting of GPT-2 under which a layer computes something else at another place."""


def keep_layers(model: PreTrainedModel, layers: Sequence[int], *, key: str) -> PreTrainedModel:
    """Drops every other decoder layer of ``model``, in place; ``layers`` count from 0, in increasing order.

    The layers that are left get new numbers, under which they find their part of a KV cache, and the configuration says
    how many there are, so that the exported folder loads as any other model does.

    Raises:
        UserError: named ``KEY.layers``, for numbers the model does not have, or a model without one stack of layers.
    """
    settings = model.config.get_text_config()
    total = settings.num_hidden_layers
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= total:
        raise UserError(f"{key}.layers", list(layers), f"increasing numbers from 0 to {total - 1}, the model's layers")
    stacks = [
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == total
    ]
    if len(stacks) != 1:
        allowed = f"null for a model of type {model.config.model_type!r}, whose layers are not one stack"
        raise UserError(f"{key}.layers", list(layers), allowed)
    [(owner, called)] = stacks
    kept = nn.ModuleList(getattr(owner, called)[number] for number in layers)
    setattr(owner, called, kept)
    for number, layer in enumerate(kept):
        for module in layer.modules():
            for name in NUMBERS:
                if isinstance(getattr(module, name, None), int):
                    setattr(module, name, number)
    settings.num_hidden_layers = len(layers)
    for field in PER_LAYER:
        values = getattr(settings, field, None)
        if isinstance(values, list) and len(values) == total:
            setattr(settings, field, [values[number] for number in layers])
    _check_alone(model, layers, key)
    return model


def _check_alone(model: PreTrainedModel, layers: Sequence[int], key: str) -> None:
    """Some architectures make a layer of what its number is: then what is left is no model of that configuration."""
    reason = "computes with the numbers of its layers" if getattr(model.config, BY_NUMBER, False) else ""
    try:
        with torch.device("meta"):
            # As it is read back: some settings are made of others then.
            made = type(model)(type(model.config).from_dict(model.config.to_dict())).state_dict()
        ours = model.state_dict()
        if {name: value.shape for name, value in made.items()} != {name: value.shape for name, value in ours.items()}:
            reason = "has layers of several kinds by their numbers"
    except (IndexError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
    if reason:
        allowed = f"null for a model of type {model.config.model_type!r} ({reason})"
        raise UserError(f"{key}.layers", list(layers), allowed)
