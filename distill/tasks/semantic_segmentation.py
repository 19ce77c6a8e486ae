"""One class per pixel."""

from __future__ import annotations

from typing import Any, ClassVar

from distill import image_evaluation, mask_evaluation
from distill.data.images import Images
from distill.image_evaluation import ImageEvaluation
from distill.models.build_images import SEGMENTER, Kind
from distill.models.image_classifier import ImageClassifier
from distill.tasks.image_classification import ImageClassification
from distill.teachers.base import Teacher


class SemanticSegmentation(ImageClassification):
    """As :class:`~distill.tasks.image_classification.ImageClassification`, whose labels are masks: a batch has as many
    targets as its masks have pixels with a class."""

    kind: ClassVar[Kind] = SEGMENTER

    def evaluate(
        self, student: ImageClassifier, teacher: Teacher | None, held_out: Images, **options: Any
    ) -> ImageEvaluation:
        return mask_evaluation.evaluate(student, teacher, held_out, **options)

    def measure(
        self,
        student: ImageClassifier,
        teacher: Teacher | None,
        held_out: Images,
        identical: bool,
        options: dict[str, Any],
    ) -> dict[str, float]:
        return image_evaluation.measure(student, teacher, held_out, identical, options, mask_evaluation.evaluate)
