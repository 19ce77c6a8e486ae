"""What is measured once, before the first step: the teacher's score, the mass padding rows hide, KL(p‖p) = 0."""

from __future__ import annotations

from typing import Any

import torch

from distill.data.base import Dataset
from distill.errors import RunError
from distill.evaluation import evaluate
from distill.models.causal_lm import CausalLM
from distill.models.vocabulary import dropped_mass
from distill.teachers.frozen import FrozenTeacher
from distill.types import Batch, Row, collate

EXAMPLES = 4
IDENTITY_TOLERANCE = 1e-3
"""Nats per token. Float rounding gives 1e-7 in fp32 and up to 1e-4 in bf16; any misalignment gives far more."""


def measure(
    student: CausalLM, teacher: FrozenTeacher | None, held_out: Dataset, identical: bool, options: dict[str, Any]
) -> dict[str, float]:
    """Metrics of step 0. ``identical`` says that teacher and student are the same weights.

    Keys: ``eval/teacher_accuracy`` (with a verifier), ``eval/dropped_mass/student`` and ``…/teacher`` where the model
    has more rows than the tokenizer has tokens.

    Raises:
        RunError: the KL between a model and itself is not zero, so losses cannot be trusted.
    """
    batch = _batch(student, held_out)
    found = _dropped("student", student, batch)
    if teacher is None:
        return found
    found |= _dropped("teacher", teacher.lm, batch)
    score = evaluate(teacher.lm, teacher if identical else None, held_out, keep_samples=0, **options)
    if identical and score.kl is not None and not score.kl < IDENTITY_TOLERANCE:
        raise RunError(f"student and teacher are the same weights, but their KL is {score.kl:.2g} nats per token.")
    if score.accuracy is not None:
        found["eval/teacher_accuracy"] = score.accuracy
    return found


def _dropped(name: str, lm: CausalLM, batch: Batch) -> dict[str, float]:
    if lm.padded_vocab_size == lm.vocab_size:
        return {}
    device = next(lm.model.parameters()).device
    moved = batch.to(device)
    return {f"eval/dropped_mass/{name}": dropped_mass(lm, moved.input_ids, moved.attention_mask)}


def _batch(lm: CausalLM, held_out: Dataset) -> Batch:
    prompts = [held_out[index].prompt_ids for index in range(min(EXAMPLES, len(held_out)))]
    rows = [Row(index, torch.tensor(ids), torch.zeros(len(ids), dtype=torch.bool)) for index, ids in enumerate(prompts)]
    return collate(rows, lm.pad_id, window_positions=0, on_policy=False)
