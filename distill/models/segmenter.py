"""A model that gives every pixel a class, as the rest of the package sees it: its logits, and no head behind them.

``V`` classes; ``x`` by ``y`` places of the grid that a model has logits for, often a quarter of the image's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedModel

from distill.errors import UserError
from distill.models.head import identity
from distill.models.image_classifier import ImageClassifier, Scale, classes_of, probe


@dataclass(eq=False)
class Segmenter(ImageClassifier):
    """:attr:`hidden` gives logits ``[B, V, x, y]``, which a batch of masks scales to its pixels.

    The last layer looks at one place at a time, and scaling mixes places alone: the one could follow the other. Logits
    are scaled, because they are fewer numbers than states where there are fewer classes than channels, and because it
    is what the models of transformers do.
    """

    # It can read masks and scale predictions back.
    processor: ClassVar[str] = "BeitImageProcessor"


def wrap(model: PreTrainedModel, shape: tuple[int, int, int], scale: Scale, *, key: str) -> Segmenter:
    """Looks at the logits of a short forward pass on images of ``shape``.

    Raises:
        UserError: named under ``key``, when the model cannot read such images, or has no logits for their places.
    """
    names = classes_of(model)
    _, found = probe(model, shape, 2, key=key)
    if len(found) != 4 or found[:2] != (2, len(names)):
        allowed = f"a model with {len(names)} logits for every place of an image (for 2 it has {list(found)})"
        raise UserError(f"{key}.config", model.config.model_type, allowed)
    return Segmenter(model, shape, scale, None, identity, names)
