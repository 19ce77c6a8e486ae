"""What a transformers configuration says of images and classes, and the same with those of the data.

``C`` channels, ``X`` by ``Y`` pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from distill.errors import UserError
from distill.models.image_classifier import Scale

VISION = "vision_config"
"""The section of a model that reads texts, too (CLIP), which its image classifier is made from."""


@dataclass(frozen=True)
class Pictures:
    """What a model has to read and to tell apart: (C, X, Y), the classes' names, the scale of a model that has none."""

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    scale: Scale | None = None


def drawn(given: dict[str, Any], pictures: Pictures, key: str) -> PreTrainedConfig:
    """The configuration of a model to draw: ``given``, with the data's image size, channels and classes.

    Raises:
        UserError: ``given`` has others. What transformers raises for settings that it does not take comes through.
    """
    defaults = AutoConfig.for_model(given["model_type"])
    of_images = {"num_channels": pictures.shape[0], "image_size": _size(defaults, pictures.shape)}
    names = _names(pictures.classes)
    nested = isinstance(getattr(defaults, VISION, None), PreTrainedConfig)
    inner = dict(given.get(VISION) or {}) if nested else given
    where = f"{key}.config.{VISION}" if nested else f"{key}.config"
    for place, own, settings in ((where, inner, of_images), (f"{key}.config", given, names)):
        for name, value in settings.items():
            # A list from YAML, and a tuple in a default, say the same.
            if name in own and _plain(own[name]) != _plain(value):
                raise UserError(f"{place}.{name}", own[name], f"left out: the data says {value!r}")
    config: PreTrainedConfig = AutoConfig.for_model(
        **{**given, **names, **({VISION: {**inner, **of_images}} if nested else of_images)}
    )
    return with_architecture(config)


def with_classes(config: PreTrainedConfig, classes: Sequence[str]) -> PreTrainedConfig:
    """A copy with other classes."""
    config = copy.deepcopy(config)
    for name, value in _names(classes).items():
        setattr(config, name, value)
    return with_architecture(config)


def with_shape(config: PreTrainedConfig, shape: tuple[int, int, int]) -> PreTrainedConfig:
    """A copy with another image size; one that says none goes on saying none."""
    config = copy.deepcopy(config)
    if shape_of(config) not in (None, shape):
        reading(config).image_size = _size(config, shape)
    return with_architecture(config)


def with_architecture(config: PreTrainedConfig) -> PreTrainedConfig:
    """Of several classes of a family transformers takes the first, if there is a list of architectures to look in."""
    config.architectures = config.architectures or []
    return config


def reading(config: PreTrainedConfig) -> Any:
    """The part that tells what images are read."""
    nested = getattr(config, VISION, None)
    return nested if isinstance(nested, PreTrainedConfig) else config


def channels_of(config: PreTrainedConfig) -> int:
    channels: int = getattr(reading(config), "num_channels", 3)
    return channels


def shape_of(config: PreTrainedConfig) -> tuple[int, int, int] | None:
    """(C, X, Y) of the images that a model was made for; None where it says no size."""
    size = getattr(reading(config), "image_size", None)
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return channels_of(config), height, width


def _size(config: PreTrainedConfig, shape: tuple[int, int, int]) -> int | list[int]:
    """One number for a square, unless the family wants two of them always."""
    _, height, width = shape
    pair = isinstance(getattr(reading(config), "image_size", None), list | tuple)
    return [height, width] if pair or height != width else height


def _names(classes: Sequence[str]) -> dict[str, Any]:
    names = dict(enumerate(classes))
    # The number alone is what PVT goes by.
    return {
        "id2label": names,
        "label2id": {name: number for number, name in names.items()},
        "num_labels": len(names),
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
