"""Where the places of an image are in what a layer gives, found in one short pass before training.

``B`` images of ``X`` by ``Y`` pixels, ``C`` channels, ``h`` by ``w`` places.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from distill import taps
from distill.errors import UserError
from distill.models import image_config
from distill.models.causal_lm import evaluating, unwrap

UNORDERED = {"hiera": ".stages.", "perceiver": "."}
"""Model types that have states which are no places row by row, and what the names of those modules have: Hiera's are in
the order of its windows, Perceiver's are of no places."""


@dataclass(frozen=True)
class Places:
    """How a layer's output has them: as ``[B, C, h, w]``, as ``[B, h, w, C]``, or as states ``[B, before + h·w, C]``,
    row by row behind those of ``before`` tokens (class, distillation, registers)."""

    form: Literal["channels first", "channels last", "states"]
    grid: tuple[int, int]
    before: int = 0

    def __call__(self, features: Tensor) -> Tensor:
        """``[B, C, h, w]``."""
        if self.form == "channels first":
            return features
        if self.form == "channels last":
            return features.permute(0, 3, 1, 2)
        found: Tensor = features[:, self.before :].transpose(1, 2).unflatten(2, self.grid)
        return found


def find(network: Any, watched: taps.Taps, name: str, layer: str | None, key: str) -> Places:
    """Lets a network of images read some, to see what its layer, watched as ``name``, gives.

    Raises:
        UserError: named ``key``; the layer does not run, or its output has no places that can be told.
    """
    draw = torch.Generator().manual_seed(0)
    pixels = torch.zeros(3, *network.shape)
    noise = torch.rand(network.shape[0], *(max(1, side // 4) for side in network.shape[1:]), generator=draw)
    # The same thing on nothing, at the left and at the right.
    pixels[1, :, : noise.shape[1], : noise.shape[2]] = noise
    pixels[2, :, : noise.shape[1], -noise.shape[2] :] = noise
    with evaluating(network.model), watched.open():
        network.hidden(pixels.to(next(network.model.parameters()).device))
        try:
            features: Any = watched[name]
        except KeyError as error:
            raise UserError(key, layer, "a module that runs in a forward pass") from error
    kind = unwrap(network.model).config.model_type
    found = None
    # A layer that runs on windows has more of them than there are images, a parameter one for all.
    if isinstance(features, Tensor) and len(features) == len(pixels):
        unordered = kind in UNORDERED and UNORDERED[kind] in f".{layer or ''}."
        found = None if unordered else _places(features, network)
    if found is None:
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        allowed = f"a layer whose output is a feature map, or states of patches row by row (of 3 images it has {shape})"
        raise UserError(key, layer or kind, allowed)
    if math.prod(found.grid) == 1:
        allowed = "a layer whose feature map has more than one place (give an earlier one by its name)"
        raise UserError(key, layer, allowed)
    return found


def _places(features: Tensor, network: Any) -> Places | None:
    """Of the layer's output for the three images of :func:`find`; None where it has no places that can be told."""
    size = network.shape[1:]
    if features.ndim == 3 and features.shape[2] > 1:
        return _states(features.shape[1], size, image_config.reading(unwrap(network.model).config))
    if features.ndim != 4:
        return None
    first, last = (_fits(features.shape[at : at + 2], size) for at in (2, 1))
    if first and last:
        # As many channels as rows and columns: what moves between the images' sides is the width.
        moves = [_moved(features, axis) for axis in (2, 3)]
        first, last = moves[1] > moves[0], moves[0] > moves[1]
    if first:
        return Places("channels first", (features.shape[2], features.shape[3]))
    return Places("channels last", (features.shape[1], features.shape[2])) if last else None


def _states(count: int, size: tuple[int, int], config: Any) -> Places | None:
    """``count`` states of an image of ``size``, by what the model's configuration says of patches and registers."""
    patch = getattr(config, "patch_size", None)
    sides = (patch, patch) if isinstance(patch, int) else patch
    grid = None
    if isinstance(sides, list | tuple) and len(sides) == 2 and all(isinstance(side, int) for side in sides):
        grid = size[0] // sides[0], size[1] // sides[1]
    if grid is not None and count >= math.prod(grid):
        registers = getattr(config, "num_register_tokens", 0) or 0
        before = count - math.prod(grid)
        known = (0, registers, registers + 1) if registers else (0, 1, 2)
        return Places("states", grid, before) if before in known else None
    # Patches are merged from stage to stage: nothing says how often.
    shapes = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    fitting = [shape for shape in shapes if _fits(shape, size)]
    return Places("states", fitting[0]) if len(fitting) == 1 else None


def _fits(grid: Any, size: tuple[int, int]) -> bool:
    """Whether ``h`` by ``w`` places may be those of an image: in its proportions, but for rounding, and no more than
    its pixels."""
    (rows, columns), (height, width) = grid, size
    if height == width:
        return bool(rows == columns <= height)
    # Some stride s has rows within one of height / s, and columns within one of width / s.
    return bool((rows - 1) * width < (columns + 1) * height and (columns - 1) * height < (rows + 1) * width)


def _moved(features: Tensor, axis: int) -> float:
    """How much the change that the second image makes lies elsewhere on an axis than that of the third, in [0, 2]."""
    change = (features[1:].float() - features[0].float()).abs().movedim(axis, 1).flatten(2).sum(2)
    shares = change / change.sum(1, keepdim=True).clamp(min=torch.finfo(change.dtype).tiny)
    return float((shares[0] - shares[1]).abs().sum())
