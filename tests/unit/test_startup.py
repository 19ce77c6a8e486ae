"""What a run measures once, and that it refuses losses which are not zero between a model and itself."""

from __future__ import annotations

from typing import Any

import pytest

from distill import startup, training
from distill.errors import RunError
from tests import tiny

OPTIONS = {"max_new_tokens": 4, "batch_size": 8, "limit": 4}


def measure(identical: bool, **changes: Any) -> dict[str, float]:
    config = tiny.config("opd", **changes)
    lm, teacher = training.build_models(config)
    _, held_out = training.build_data(config, lm)
    return startup.measure(lm, teacher, held_out, identical, OPTIONS)


def test_the_teachers_accuracy_without_padding_rows() -> None:
    assert set(measure(identical=False)) == {"eval/teacher_accuracy"}


def test_a_teacher_with_the_students_weights_passes() -> None:
    assert set(measure(identical=True, teacher__config=tiny.llama(8))) == {"eval/teacher_accuracy"}


def test_a_kl_between_equals_that_is_not_zero_ends_the_run() -> None:
    with pytest.raises(RunError, match="KL"):
        measure(identical=True)


def test_the_mass_of_padding_rows_is_told_for_each_model_that_has_some() -> None:
    padded = {**tiny.llama(8), "vocab_size": 32}
    found = measure(identical=False, student__config=padded)
    assert 0 < found["eval/dropped_mass/student"] < 1
    assert "eval/dropped_mass/teacher" not in found


def test_without_a_teacher_there_is_nothing_to_say_of_one() -> None:
    config = tiny.config("sft")
    lm, _ = training.build_models(config)
    assert startup.measure(lm, None, training.build_data(config, lm)[1], False, OPTIONS) == {}
