"""From a configuration to an :class:`~distill.models.image_classifier.ImageClassifier`."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin

from distill.errors import UserError
from distill.models import mlp, weights
from distill.models.build import LOADING_ERRORS, checkpoint_activations, options, pretrained, seeded
from distill.models.image_classifier import ImageClassifier, Scale, classes_of, same_classes, wrap
from distill.models.locate import ALLOWED, locate
from distill.models.tokenizers import one_line

log = logging.getLogger(__name__)

BYTE = 1 / 255
"""What image processors multiply bytes by."""
GREY = 0.5
"""Mean and standard deviation of every channel where nothing says otherwise: values from -1 to 1."""


@dataclass(frozen=True)
class Pictures:
    """What a model has to read and to tell apart: (C, X, Y), the classes' names, the scale of a model that has none."""

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    scale: Scale | None = None


def build(spec: dict[str, Any], *, seed: int, key: str, pictures: Pictures | None = None) -> ImageClassifier:
    """Builds the model that ``spec`` (the fields of the schema's ``Student`` or ``Teacher``) describes, on the CPU.

    Weights come from ``spec["path"]``, or are drawn from ``seed`` for ``spec["config"]``. A model that is drawn takes
    image size, channels and classes from ``pictures``; one that is loaded has to fit them. Without ``pictures`` they
    are those that this package saved with the model.

    Raises:
        UserError: named under ``key``, for whatever cannot be found, read or used.
    """
    path, config = spec.get("path"), spec.get("config")
    if (path is None) == (config is None):
        raise UserError(f"{key}.path", path, f"set if and only if `{key}.config` is not ({ALLOWED})")
    mlp.register()
    with seeded(seed):
        if path is not None:
            location = locate(path, key=f"{key}.path")
            model = _load(spec, location, key)
            shape, scale = _of_model(spec, model, location, pictures, key)
            if pictures is not None:
                same_classes(pictures.classes, classes_of(model), path, f"{key}.path")
        else:
            assert pictures is not None, "a model is drawn for data"
            model = _random(spec, dict(config or {}), pictures, key)
            shape, scale = pictures.shape, pictures.scale or _grey(pictures.shape[0])
    if spec.get("gradient_checkpointing"):
        checkpoint_activations(model, key)
    return wrap(model, shape, scale, key=key)


def _load(spec: dict[str, Any], location: Path | str, key: str) -> PreTrainedModel:
    if isinstance(location, Path):
        weights.check_files(location, allow_pickle=bool(spec.get("allow_pickle")), key=key)
    try:
        model, report = pretrained(AutoModelForImageClassification, spec, location)
    except LOADING_ERRORS as error:
        allowed = f"an existing folder or a hub id, of an image classifier ({one_line(error)})"
        raise UserError(f"{key}.path", spec["path"], allowed) from error
    weights.check_complete(report, path=spec["path"], key=key)
    weights.check_finite(model, path=spec["path"], key=key)
    return model


def _random(spec: dict[str, Any], config: dict[str, Any], pictures: Pictures, key: str) -> PreTrainedModel:
    if "model_type" not in config:
        raise UserError(f"{key}.config", config, "a transformers configuration with a `model_type`")
    channels, height, width = pictures.shape
    names = dict(enumerate(pictures.classes))
    settings: dict[str, Any] = {"num_channels": channels, "image_size": height if height == width else [height, width]}
    settings |= {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    for name, value in settings.items():
        if config.get(name, value) != value:
            raise UserError(f"{key}.config.{name}", config[name], f"left out: the data says {value!r}")
    try:
        model: PreTrainedModel = AutoModelForImageClassification.from_config(
            AutoConfig.for_model(**{**config, **settings}), **options(spec)
        )
    except (*LOADING_ERRORS, StrictDataclassError, TypeError, RuntimeError, AttributeError) as error:
        allowed = f"a transformers configuration of an image classifier ({one_line(error)})"
        raise UserError(f"{key}.config", spec["config"], allowed) from error
    return model


def _of_model(
    spec: dict[str, Any], model: PreTrainedModel, location: Path | str, pictures: Pictures | None, key: str
) -> tuple[tuple[int, int, int], Scale]:
    """What a loaded model reads: the data's shape, if that is what the model was made for, and the scale it brings."""
    size = getattr(model.config, "image_size", None)
    channels = getattr(model.config, "num_channels", 3)
    own = None if size is None else (channels, *((size, size) if isinstance(size, int) else tuple(size)))
    shape = own if pictures is None else pictures.shape
    if shape is None:
        raise UserError(f"{key}.path", str(location), "a model whose configuration has an `image_size`")
    if shape[0] != channels:
        raise UserError("data.channels", shape[0], f"{channels}, which {location} reads")
    if own is not None and shape != own:
        raise UserError("data.image_size", shape[1], f"{own[1]}, which {location} reads")
    asked = None if pictures is None else pictures.scale
    return shape, _brought(spec, location, shape[0], key) or asked or _grey(shape[0])


def _brought(spec: dict[str, Any], location: Path | str, channels: int, key: str) -> Scale | None:
    """The scale in the settings of a model's image processor, here or on the hub; None where they have none.

    Raises:
        UserError: they ask for something else than RGB in [0, 1], freed of a mean and a standard deviation.
    """
    try:
        content, _ = ImageProcessingMixin.get_image_processor_dict(location, revision=spec.get("revision") or "main")
        names = ("image_mean", "image_std")
        plain = content.get("do_normalize") is False
        mean, std = ((0.0,) * channels, (1.0,) * channels) if plain else (_numbers(content[name]) for name in names)
        factor = float(content.get("rescale_factor", BYTE))
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("%s: nothing says how its pixels are scaled: data.mean and data.std do", location)
        return None
    turned = content.get("do_flip_channel_order") or content.get("do_rescale") is False
    if turned or not math.isclose(factor, BYTE, rel_tol=1e-4):
        allowed = "a model that reads RGB in [0, 1] before mean and std are taken off (its image processor differs)"
        raise UserError(f"{key}.path", str(location), allowed)
    return Scale(mean, std) if len(mean) == len(std) == channels and all(std) else None


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _grey(channels: int) -> Scale:
    return Scale((GREY,) * channels, (GREY,) * channels)
