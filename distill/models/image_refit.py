"""A loaded image classifier for other classes (a fresh head), or for images of another size.

``S`` places of a sequence: ``P`` for the patches of a grid behind some for no patch; ``H`` width of the states.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from distill.errors import UserError
from distill.models.image_config import reading, shape_of, with_classes

log = logging.getLogger(__name__)


def head_names(auto: Any, config: PreTrainedConfig, options: dict[str, Any]) -> set[str]:
    """Names of the weights whose shapes depend on the number of classes: every family has another name for them.

    ``auto`` is the class of transformers that makes such a model.
    """
    shapes = []
    for count in (2, 3):
        with torch.device("meta"):
            made = with_classes(config, [str(number) for number in range(count)])
            model = auto.from_config(made, **options)
        shapes.append({name: tensor.shape for name, tensor in model.state_dict().items()})
    return {name for name, shape in shapes[0].items() if shapes[1][name] != shape}


def refit(
    auto: Any, model: PreTrainedModel, config: PreTrainedConfig, fresh: set[str], options: dict[str, Any], *, name: str
) -> PreTrainedModel:
    """The weights of ``model`` in the architecture of ``config``, made by ``auto``; those called ``fresh`` are drawn.

    Position embeddings of a square or oblong grid of patches are interpolated (bicubic, as ``interpolate_pos_encoding``
    of transformers does at every step).

    Raises:
        UserError: something else depends on the image size.
    """
    made: PreTrainedModel = auto.from_config(config, **options)
    wanted, learnt = made.state_dict(), {key for key, _ in made.named_parameters()}
    state = {}
    for key, tensor in model.state_dict().items():
        if key in fresh:
            continue
        if tensor.shape == wanted[key].shape:
            state[key] = tensor
        elif key in learnt:
            resized = _interpolated(tensor, wanted[key].shape, _grid(model.config), _grid(config))
            if resized is None:
                own, asked = (shape_of(part) or (0, 0, 0) for part in (model.config, config))
                allowed = f"{own[1]}, which {name} reads: its {key} is made for that size"
                raise UserError("data.image_size", asked[1], allowed)
            log.warning("%s: %s was made for images of another size, and is interpolated", name, key)
            state[key] = resized
    made.load_state_dict(state, strict=False)
    made.train(model.training)
    return made


def _grid(config: PreTrainedConfig) -> tuple[int, int] | None:
    """Rows and columns of patches; None for a model without patches of one size."""
    shape, patch = shape_of(config), getattr(reading(config), "patch_size", None)
    if shape is None or patch is None:
        return None
    height, width = (patch, patch) if isinstance(patch, int) else patch
    return shape[1] // height, shape[2] // width


def _interpolated(
    tensor: Tensor, wanted: torch.Size, old: tuple[int, int] | None, new: tuple[int, int] | None
) -> Tensor | None:
    """``[…, S, H]`` for another grid; what stands before the patches stays. None where it is no such thing."""
    if old is None or new is None or tensor.ndim < 2 or tensor.numel() != tensor[..., :, :].shape[-2:].numel():
        return None
    before = tensor.shape[-2] - math.prod(old)
    if before < 0 or wanted != (*tensor.shape[:-2], before + math.prod(new), tensor.shape[-1]):
        return None
    first, patches = tensor[..., :before, :], tensor[..., before:, :]
    picture = patches.reshape(1, *old, -1).permute(0, 3, 1, 2).float()
    scaled = functional.interpolate(picture, size=new, mode="bicubic", align_corners=False).to(tensor.dtype)
    rows = scaled.permute(0, 2, 3, 1).reshape(*patches.shape[:-2], -1, patches.shape[-1])
    return torch.cat([first, rows], dim=-2)
