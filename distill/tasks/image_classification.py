"""One class per image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from distill import teachers
from distill.data import images
from distill.data.images import Images
from distill.data.window import Collate
from distill.errors import UserError
from distill.image_evaluation import ImageEvaluation, evaluate, measure
from distill.images import collate
from distill.models import build_images
from distill.models.build_images import CLASSIFIER, Kind, Pictures
from distill.models.image_classifier import ImageClassifier, Scale
from distill.rollouts.images import Augmentation, ImageRollout
from distill.teachers.base import Teacher


class ImageClassification:
    """Image classifiers on pixels (``tasks.base.Task``); a batch of ``B`` images has ``N = B`` targets."""

    kind: ClassVar[Kind] = CLASSIFIER

    def build(self, spec: dict[str, Any], *, seed: int, key: str, source: Mapping[str, Any] | None) -> ImageClassifier:
        pictures = None if source is None else _pictures(source)
        return build_images.build(spec, seed=seed, key=key, pictures=pictures, kind=self.kind)

    def teacher(self, config: Mapping[str, Any], student: ImageClassifier) -> Teacher | None:
        def make(spec: dict[str, Any], key: str, more: int) -> ImageClassifier:
            return self.build(spec, seed=config["seed"] + more, key=key, source=config["data"])

        return teachers.build(config["teacher"], student, config["seed"], make)

    def data(
        self, config: Mapping[str, Any], student: ImageClassifier, teacher: Teacher | None
    ) -> tuple[Images, Images]:
        train, held_out = images.built(config["data"])
        if config["eval_data"] is None:
            return train, held_out
        other = images.built(config["eval_data"])[1]
        for name, ours, theirs in (("classes", train.classes, other.classes), ("shape", train.shape, other.shape)):
            if ours != theirs:
                raise UserError("eval_data", theirs, f"images of the same {name} as those of data, {ours}")
        return train, other

    def held_out(self, config: Mapping[str, Any], student: ImageClassifier, teacher: Teacher | None) -> Images:
        return images.built(config["data"])[1]

    def rows(self, config: Mapping[str, Any]) -> ImageRollout:
        pad, flip = config["data"]["pad_crop"], config["data"]["flip"]
        return ImageRollout(config["seed"], Augmentation(pad, flip) if pad or flip else None)

    def collate(self, student: ImageClassifier) -> Collate:
        return collate

    def evaluate(
        self, student: ImageClassifier, teacher: Teacher | None, held_out: Images, **options: Any
    ) -> ImageEvaluation:
        return evaluate(student, teacher, held_out, **options)

    def measure(
        self,
        student: ImageClassifier,
        teacher: Teacher | None,
        held_out: Images,
        identical: bool,
        options: dict[str, Any],
    ) -> dict[str, float]:
        return measure(student, teacher, held_out, identical, options)

    def check_readable(self, config: dict[str, Any]) -> None:
        images.built(config["data"])
        if config["eval_data"] is not None:
            images.built(config["eval_data"])


def _pictures(source: Mapping[str, Any]) -> Pictures:
    train, _ = images.built(source)
    channels = train.shape[0]
    mean, std = source["mean"], source["std"]
    scale = None if mean is None else Scale(tuple(mean) * (channels // len(mean)), tuple(std) * (channels // len(std)))
    return Pictures(train.shape, train.classes, scale)
