"""From a configuration to an :class:`~distill.models.image_classifier.ImageClassifier`, or one of its pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSemanticSegmentation, PreTrainedModel

from distill.errors import UserError
from distill.models import batch_statistics, image_classifier, image_processor, mlp, segmenter, weights
from distill.models.build import LOADING_ERRORS, checkpoint_activations, options, pretrained, seeded
from distill.models.causal_lm import evaluating
from distill.models.image_classifier import ImageClassifier, Scale, classes_of, same_classes
from distill.models.image_config import (
    Pictures,
    channels_of,
    drawn,
    shape_of,
    with_architecture,
    with_classes,
    with_shape,
)
from distill.models.image_refit import head_names, refit
from distill.models.locate import ALLOWED, locate
from distill.models.tokenizers import one_line

__all__ = ["CLASSIFIER", "SEGMENTER", "Kind", "Pictures", "build"]

GREY = 0.5
"""Mean and standard deviation of every channel where nothing says otherwise: values from -1 to 1."""
DRAWING_ERRORS = (*LOADING_ERRORS, StrictDataclassError, TypeError, RuntimeError, AttributeError, IndexError)


@dataclass(frozen=True)
class Kind:
    """``auto`` is the class of transformers that loads it, ``noun`` what messages call it, ``whole_head`` whether a
    head is more than the layer whose size depends on the classes."""

    auto: Any
    noun: str
    wrap: Callable[..., ImageClassifier]
    whole_head: bool = False


CLASSIFIER = Kind(AutoModelForImageClassification, "an image classifier", image_classifier.wrap)
SEGMENTER = Kind(AutoModelForSemanticSegmentation, "a model for semantic segmentation", segmenter.wrap, whole_head=True)


def build(
    spec: dict[str, Any], *, seed: int, key: str, pictures: Pictures | None = None, kind: Kind = CLASSIFIER
) -> ImageClassifier:
    """Builds the model that ``spec`` (the fields of the schema's ``Student`` or ``Teacher``) describes, on the CPU.

    Weights come from ``spec["path"]``, or are drawn from ``seed`` for ``spec["config"]``. A model that is drawn takes
    image size, channels and classes from ``pictures``. One that is loaded has to have their channels, and their classes
    unless ``spec["new_head"]`` asks for a head that is drawn; its position embeddings are interpolated where images of
    another size want that. Without ``pictures`` they are those that this package saved with the model.

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
            model = _load(spec, location, pictures, key, kind)
            shape = _shape(model, location, pictures, key)
            asked = None if pictures is None else pictures.scale
            scale = image_processor.scale(spec, location, shape[0], key) or asked or _grey(shape[0])
        else:
            assert pictures is not None, "a model is drawn for data"
            model = _random(spec, dict(config or {}), pictures, key, kind)
            shape, scale = pictures.shape, pictures.scale or _grey(pictures.shape[0])
    found = kind.wrap(model, shape, scale, key=key)
    if "new_head" in spec:
        prepare(found, bool(spec.get("frozen_batch_norm")))
    if spec.get("gradient_checkpointing"):
        checkpoint_activations(model, key)
    return found


def prepare(student: ImageClassifier, frozen_batch_norm: bool) -> None:
    """For training. What no logit depends on (a mask token, CLIP's last norm) has no part in it: DDP would wait for its
    gradient. ``frozen_batch_norm``: batch normalisation keeps its statistics."""
    trained = {name: p for name, p in student.model.named_parameters() if p.requires_grad}
    with evaluating(student.model), torch.enable_grad():
        logits = student.head(student.hidden(torch.zeros(1, *student.shape)))
        gradients = torch.autograd.grad(logits.sum(), list(trained.values()), allow_unused=True)
    for parameter, gradient in zip(trained.values(), gradients, strict=True):
        parameter.requires_grad = gradient is not None
    if frozen_batch_norm:
        batch_statistics.freeze(student.model)


def _load(
    spec: dict[str, Any], location: Path | str, pictures: Pictures | None, key: str, kind: Kind
) -> PreTrainedModel:
    """The model at ``location`` with its own head, or a new one, for the images and the classes of ``pictures``."""
    if isinstance(location, Path):
        weights.check_files(location, allow_pickle=bool(spec.get("allow_pickle")), key=key)
    name, new_head = spec["path"], bool(spec.get("new_head"))
    try:
        source = {"revision": spec.get("revision") or "main", "trust_remote_code": bool(spec.get("trust_remote_code"))}
        config = with_architecture(AutoConfig.from_pretrained(location, **source))
        model, report = pretrained(kind.auto, spec, location, config=config)
        missing = set(report["missing_keys"])
        fresh = head_names(kind.auto, config, options(spec)) if new_head or missing else set[str]()
    except LOADING_ERRORS as error:
        allowed = f"an existing folder or a hub id, of {kind.noun} ({one_line(error)})"
        raise UserError(f"{key}.path", name, allowed) from error
    if kind.whole_head:
        fresh |= {one for one in missing if not one.startswith(f"{model.base_model_prefix}.")}
    if new_head:
        report["missing_keys"] = missing - fresh
    elif missing and missing <= fresh and "new_head" in spec:
        raise UserError(f"{key}.path", name, f"a model with a head for its classes ({_drawing(key)})")
    weights.check_complete(report, path=name, key=key)
    weights.check_finite(model, path=name, key=key)
    if pictures is None:
        return model
    if new_head:
        config = with_classes(config, pictures.classes)
    else:
        hint = f"; {_drawing(key)}" if "new_head" in spec else ""
        same_classes(pictures.classes, classes_of(model), name, f"{key}.path", hint)
    if pictures.shape[0] != channels_of(config):
        raise UserError("data.channels", pictures.shape[0], f"{channels_of(config)}, which {location} reads")
    if not new_head and shape_of(config) in (None, pictures.shape):
        return model
    return refit(kind.auto, model, with_shape(config, pictures.shape), fresh, options(spec), name=str(location))


def _drawing(key: str) -> str:
    return f"`{key}.new_head=true` draws one for those of the data"


def _random(spec: dict[str, Any], config: dict[str, Any], pictures: Pictures, key: str, kind: Kind) -> PreTrainedModel:
    if "model_type" not in config:
        raise UserError(f"{key}.config", config, "a transformers configuration with a `model_type`")
    try:
        model: PreTrainedModel = kind.auto.from_config(drawn(config, pictures, key), **options(spec))
    except UserError:
        raise
    except DRAWING_ERRORS as error:
        allowed = f"a transformers configuration of {kind.noun} ({one_line(error)})"
        raise UserError(f"{key}.config", spec["config"], allowed) from error
    return model


def _shape(model: PreTrainedModel, location: Path | str, pictures: Pictures | None, key: str) -> tuple[int, int, int]:
    """(C, X, Y) that a loaded model reads; without ``pictures`` the processor tells, as many configurations do not."""
    if pictures is not None:
        return pictures.shape
    size = image_processor.saved_size(location)
    shape = shape_of(model.config) if size is None else (channels_of(model.config), *size)
    if shape is None:
        raise UserError(f"{key}.path", str(location), "a model whose configuration has an `image_size`")
    return shape


def _grey(channels: int) -> Scale:
    return Scale((GREY,) * channels, (GREY,) * channels)
