"""Next-token prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill import data, models, schedule, startup, teachers
from distill.data.base import Dataset
from distill.data.briefing import Needs
from distill.data.window import Collate
from distill.evaluation import Evaluation, evaluate
from distill.models.causal_lm import CausalLM
from distill.rollouts.dataset import DatasetRollout
from distill.teachers.base import Teacher
from distill.teachers.cotrained import CotrainedTeacher
from distill.teachers.frozen import FrozenTeacher
from distill.types import collate


class Language:
    """Causal language models on tokens (``tasks.base.Task``)."""

    def build(self, spec: dict[str, Any], *, seed: int, key: str, source: Mapping[str, Any] | None) -> CausalLM:
        return models.build(spec, seed=seed, key=key)

    def teacher(self, config: Mapping[str, Any], student: CausalLM) -> Teacher | None:
        def make(spec: dict[str, Any], key: str, more: int) -> CausalLM:
            lm = models.build(spec, seed=config["seed"] + more, key=key)
            models.share_vocabulary(student, lm, key=key)
            return lm

        return teachers.build(config["teacher"], student, config["seed"], make)

    def data(self, config: Mapping[str, Any], student: CausalLM, teacher: Teacher | None) -> tuple[Dataset, Dataset]:
        """Tokenised for the student; a teacher that writes, too, has to have room."""
        rollout, writers = config["rollout"], [student.max_positions]
        if rollout["kind"] == "speculative" or isinstance(teacher, CotrainedTeacher):
            assert isinstance(teacher, FrozenTeacher | CotrainedTeacher), "configurations without one are refused"
            writers.append(teacher.max_positions)
        return data.build(
            config["data"],
            student.tokenizer,
            seed=config["seed"],
            max_positions=min((limit for limit in writers if limit is not None), default=None),
            completions=rollout["kind"] == "dataset" or schedule.lowest(rollout["on_policy_fraction"]) < 1,
            needs=_needs(config, teacher),
            judging=config["eval_data"],
        )

    def held_out(self, config: Mapping[str, Any], student: CausalLM, teacher: Teacher | None) -> Dataset:
        limit, needs = student.max_positions, _needs(config, teacher)
        return data.build(config["data"], student.tokenizer, seed=config["seed"], max_positions=limit, needs=needs)[1]

    def rows(self, config: Mapping[str, Any]) -> DatasetRollout:
        return DatasetRollout()

    def collate(self, student: CausalLM) -> Collate:
        return lambda rows, positions, on_policy: collate(rows, student.pad_id, positions, on_policy)

    def evaluate(self, student: CausalLM, teacher: Teacher | None, held_out: Dataset, **options: Any) -> Evaluation:
        return evaluate(student, teacher, held_out, **options)

    def measure(
        self, student: CausalLM, teacher: Teacher | None, held_out: Dataset, identical: bool, options: dict[str, Any]
    ) -> dict[str, float]:
        return startup.measure(student, teacher, held_out, identical, options)

    def check_readable(self, config: dict[str, Any]) -> None:
        startup.check_readable(config)


def _needs(config: Mapping[str, Any], teacher: Teacher | None) -> Needs:
    reads = None if teacher is None else teacher.max_positions
    return Needs.of(config["teacher"], reads, config["rollout"]["max_new_tokens"])
