"""What a run learns to do: which models, examples, rows, batches and numbers belong together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.tasks.base import Task
from distill.tasks.image_classification import ImageClassification
from distill.tasks.language import Language
from distill.tasks.semantic_segmentation import SemanticSegmentation

TASKS: dict[str, Task] = {
    "causal_lm": Language(),
    "image_classification": ImageClassification(),
    "semantic_segmentation": SemanticSegmentation(),
}

__all__ = ["TASKS", "Task", "of"]


def of(config: Mapping[str, Any]) -> Task:
    """The task of a configuration; a run recorded before there were several is of the first."""
    return TASKS[(config.get("task") or {"name": "causal_lm"})["name"]]
