"""An image classifier as the rest of the package sees it: the state that each image's class is predicted from, a head.

``B`` images, ``C`` channels, ``X`` by ``Y`` pixels, ``H`` width of the state, ``V`` classes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill.errors import UserError
from distill.models.causal_lm import evaluating
from distill.models.head import LogitHead, identity, measure
from distill.types import Head, MicroBatch, Signal

log = logging.getLogger(__name__)

PROCESSOR = "preprocessor_config.json"
BILINEAR = 2
PROBED = 15
"""Logits that a measurement of the head takes at least."""
MISFITS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError)
"""What models raise that cannot read an image, or say something else than logits."""


@dataclass(frozen=True)
class Scale:
    """The mean and the standard deviation, by channel, that a model expects pixels in [0, 1] to be freed of."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """``[…, C, X, Y]`` in [0, 1] → what the model reads."""
        mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std


@dataclass(eq=False)
class ImageClassifier:
    """A model with what its pixels are scaled by. Not an ``nn.Module``: whoever trains it registers :attr:`model`.

    Attributes:
        shape: (C, X, Y) of the images it is given; ``scale`` belongs to the model, so that a teacher may have another.
        output: the layer from states to logits; None when ``hidden`` has to return logits.
        head: ``[..., H] → [..., V]``; the identity when ``output`` is None.
        classes: their names, by number.
    """

    processor: ClassVar[str] = "CLIPImageProcessor"

    model: PreTrainedModel | Any
    shape: tuple[int, int, int]
    scale: Scale
    output: nn.Module | None
    head: Head
    classes: tuple[str, ...]

    @property
    def max_positions(self) -> None:
        """Images have no length."""
        return None

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        """What the head is made of; under ZeRO-3 it has to be gathered where :attr:`head` is called."""
        return list(self.head.module.parameters()) if isinstance(self.head, LogitHead) else []

    def hidden(self, pixels: Tensor) -> Tensor:
        """``[B, C, X, Y]`` in [0, 1] → ``[B, H]``: what enters the output layer, behind pooling and dropout.

        The whole model runs, and what its output layer is given is taken on the way: how a model pools has another name
        in every family, and what it does between pooling and output (MobileNet's dropout) counts in training.
        """
        scaled = self.scale(pixels).to(next(self.model.parameters()).dtype)
        if self.output is None:
            logits: Tensor = self.model(pixel_values=scaled).logits
            return logits
        entered: list[Tensor] = []

        def take(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            entered.append(arguments[0])

        hook = self.output.register_forward_pre_hook(take, prepend=True)
        try:
            self.model(pixel_values=scaled)
        finally:
            hook.remove()
        return entered[0]

    def signal(self, batch: MicroBatch) -> Signal:
        """The states of the batch's images, ``[N, H]``, and the head."""
        return Signal(batch.select(self.hidden(*batch.inputs)), self.head)

    def save_reader(self, folder: Path) -> None:
        """Writes the settings of an image processor, as Hugging Face models have them."""
        channels, height, width = self.shape
        size = {"height": height, "width": width}
        # As data.images.resized does: the shorter side is scaled, the middle kept. Images that are no squares are not
        # resized in training; all of them are as large as these.
        square = {"size": {"shortest_edge": height}, "do_center_crop": True, "crop_size": size}
        settings = {
            "image_processor_type": self.processor,
            "do_convert_rgb": channels == 3,
            "do_resize": True,
            "resample": BILINEAR,
            **(square if height == width else {"size": size, "do_center_crop": False}),
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.scale.mean),
            "image_std": list(self.scale.std),
        }
        (folder / PROCESSOR).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def wrap(model: PreTrainedModel, shape: tuple[int, int, int], scale: Scale, *, key: str) -> ImageClassifier:
    """Finds the output layer by a short forward pass on images of ``shape``.

    Raises:
        UserError: named under ``key``, when the model cannot read such images.
    """
    names = classes_of(model)
    count = len(names)
    probed = max(1, -(-PROBED // count))
    inputs, found = probe(model, shape, probed, key=key)
    if found != (probed, count):
        allowed = f"a model with {count} logits for an image (for {probed} it has {list(found)})"
        raise UserError(f"{key}.config", model.config.model_type, allowed)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == count]
    with evaluating(model):
        for layer in reversed(layers):
            measured = measure(model, layer, inputs, count)
            if measured is not None and measured[1].ndim == 2:
                return ImageClassifier(model, shape, scale, layer, measured[0], names)
    log.warning("%s: no separate head found, the logits are taken as they are", model.config.model_type)
    return ImageClassifier(model, shape, scale, None, identity, names)


def probe(
    model: PreTrainedModel, shape: tuple[int, int, int], count: int, *, key: str
) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """So many images of noise as a model's inputs, and the shape of its logits for them.

    Raises:
        UserError: named under ``key``, when the model cannot read such images.
    """
    # Noise: on a black image a model without biases has states of 0, from which any layer predicts the same.
    noise = torch.rand((count, *shape), generator=torch.Generator().manual_seed(0))
    inputs = {"pixel_values": (2 * noise - 1).to(model.device, model.dtype)}
    with evaluating(model):
        try:
            return inputs, tuple(model(**inputs).logits.shape)
        except MISFITS as error:
            # Sizes that do not fit together show in the first forward pass only.
            reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
            allowed = f"a model that reads images of {'×'.join(map(str, shape))} ({reason})"
            raise UserError(f"{key}.config", model.config.model_type, allowed) from error


def classes_of(model: PreTrainedModel) -> tuple[str, ...]:
    """The names of a model's classes, by number."""
    names: dict[Any, Any] = model.config.id2label or {}
    return tuple(str(names[number]) for number in range(len(names)))


def same_classes(data: Sequence[str], model: Sequence[str], name: str, key: str, hint: str = "") -> None:
    """Refuses a model whose class numbers mean something else than the data's; without names they count by number.

    ``hint`` says what else would do.

    Raises:
        UserError: named under ``key``, and the first difference.
    """
    reason = None
    if len(data) != len(model):
        reason = f"it has {len(model)}, the data {len(data)}"
    elif named(data) and named(model) and list(data) != list(model):
        at = next(number for number, pair in enumerate(zip(data, model, strict=True)) if pair[0] != pair[1])
        reason = f"class {at} is {model[at]!r} for the model, {data[at]!r} in the data"
    if reason is not None:
        raise UserError(key, name, f"a model of the data's classes ({reason}{hint})")


def named(classes: Sequence[str]) -> bool:
    """Whether classes have names of their own: transformers fills in LABEL_0, LABEL_1, …"""
    return any(name != f"LABEL_{number}" for number, name in enumerate(classes))
