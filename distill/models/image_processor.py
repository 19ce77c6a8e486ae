"""What the settings of an image processor beside a model say: the scale of its pixels, and the size of its images.

``C`` channels, ``X`` by ``Y`` pixels.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from transformers.image_processing_base import ImageProcessingMixin

from distill.errors import UserError
from distill.models.image_classifier import PROCESSOR, Scale

log = logging.getLogger(__name__)

BYTE = 1 / 255
"""What image processors multiply bytes by."""


def scale(spec: dict[str, Any], location: Path | str, channels: int, key: str) -> Scale | None:
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


def saved_size(folder: Path | str) -> tuple[int, int] | None:
    """(X, Y) of the images that a model was trained on that this package saved in ``folder``; None for any other."""
    try:
        content = json.loads((Path(folder) / PROCESSOR).read_text(encoding="utf-8"))
        size = content.get("crop_size") or content["size"]
        return int(size["height"]), int(size["width"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
