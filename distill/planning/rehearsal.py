"""Runs the phases of a training run on fake tensors, with the run's own models and losses, and keeps each one's peak.

Shapes: ``B`` rows, ``T`` time, ``N`` target positions, ``V`` vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from distill import optim
from distill.losses.divergence import forward_kl, log_probs_of_both, reverse_kl
from distill.models.causal_lm import CausalLM, evaluating, unwrap
from distill.objective import build
from distill.planning import teaching
from distill.planning.tracker import Peak, Tracker
from distill.planning.workload import Workload, room
from distill.rollouts.sampling import Sampling, sample
from distill.schedule import highest
from distill.strategies import is_zero
from distill.teachers.base import Teacher
from distill.teachers.frozen import FrozenTeacher
from distill.teachers.self_taught import SelfTeacher
from distill.types import Batch, Signal

STEPS = 3
"""Optimizer steps rehearsed: after them the allocator has found its order."""
CHUNK = 1024
"""Positions that evaluation's divergences take at once."""


class FakeBatch(Batch):
    """A batch of full rows whose ``N`` targets are known by number, as fake masks say nothing."""

    @property
    def targets(self) -> Tensor:
        return self.input_ids.new_zeros(len(self.sample_ids))

    def select(self, hidden: Tensor) -> Tensor:
        return hidden[:, :-1][self.sample_ids, self.sample_ids]


@dataclass
class Rehearsal:
    """``beside`` are the teacher's models; ``phases``: the peak of each, in the order of the run."""

    config: dict[str, Any]
    work: Workload
    student: CausalLM
    teacher: Teacher | None
    beside: list[CausalLM]
    tracker: Tracker
    phases: dict[str, Peak]

    def run(self, only_step: bool = False) -> None:
        """Everything from the first evaluation to the last; ``only_step`` leaves evaluations out."""
        tracker, evaluation = self.tracker, self.config["callbacks"]["evaluation"] is not None and not only_step
        tracker.watch(self.student.model, "student weights")
        for lm in self.beside:
            tracker.watch(lm.model, "teacher")
        with tracker:
            if evaluation:
                self._evaluate("evaluation at the start")
                if isinstance(self.teacher, FrozenTeacher | SelfTeacher):
                    prompt = self.work.eval_prompt + self.work.told
                    self._generate(self.teacher.lm, self.work.eval_rows, prompt, 0.0, "evaluation at the start")
            optimizer, _ = optim.build(
                self.student.model.parameters(), **self.config["optimizer"], max_steps=self.work.steps
            )
            for _ in range(min(STEPS, self.work.steps)):
                self._step(optimizer)
            with self._phase("after a step"):
                pass
            if evaluation:
                self._evaluate("evaluation")

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        told = self._rollout()
        if not self.tracker.on_heap:
            # On a GPU they wait in the CPU's memory for their micro-batch.
            told = None
        self.student.model.train()
        with self._phase("training step"):
            for micro_batch in range(min(self.work.micro_batches, 2)):
                with self._autocast():
                    loss = self._loss()
                if micro_batch == 0:
                    # Lightning drops the former step's gradients between forward and backward pass.
                    optimizer.zero_grad()
                with self.tracker.within("backward pass"):
                    loss.backward()
                del loss
            with self.tracker.within("optimizer state"):
                nn.utils.clip_grad_norm_(self.student.model.parameters(), 1.0)
                optimizer.step()
        del told

    def _rollout(self) -> Tensor | None:
        """What there is of all rows of a step beside their tokens: the teacher's states of a speculative rollout."""
        options, work = self.config["rollout"], self.work
        if options["kind"] == "dataset":
            return None
        beside, told = None, None
        if options["kind"] == "speculative":
            beside, told = self.beside[0], self._told(work.rows * work.completion)
        self._generate(self.student, work.rows, work.prompt, highest(options["temperature"]), "rollout", beside)
        return told

    def _told(self, positions: int) -> Tensor:
        """The states ``[positions, H]`` that a speculative rollout has of its teacher."""
        with self.tracker.within("teacher's states"):
            return torch.zeros(positions, teaching.width(self.beside[0]), dtype=teaching.dtype(self.beside[0]))

    def _loss(self) -> Tensor:
        batch = self._batch(self.work.micro_rows, self.work.length, self.work.positions)
        options = self.config["objective"]
        objective = build(options | {"temperature": highest(options["temperature"])})
        teacher = None
        if self.teacher is not None and objective.needs_teacher:
            told = self._batch(self.work.micro_rows, self.work.length + self.work.told, self.work.positions)
            if not teaching.asked_again(self.config):
                told = replace(told, teacher_states=self._told(self.work.positions))
            with self.tracker.within("teacher's activations"), torch.no_grad():
                teacher = self.teacher.signal(told)
        elif objective.needs_teacher:
            teacher = self._from_a_cache()
        with self.tracker.within("activations"):
            student = self.student.signal(batch)
        with self.tracker.within("loss workspace"):
            logprobs = torch.zeros(self.work.positions) if self.config["rollout"]["kind"] == "on_policy" else None
            return objective(student, batch.targets, teacher, logprobs)[0]

    def _from_a_cache(self) -> Signal:
        """Log-probabilities made of what is on disk, a chunk at a time, as many as the student's."""
        size = self.student.vocab_size
        return Signal(torch.arange(self.work.positions), lambda at: torch.zeros(len(at), size))

    def _generate(
        self, lm: CausalLM, rows: int, prompt: int, temperature: float, phase: str, beside: CausalLM | None = None
    ) -> None:
        """First and last token of a rollout: the prompt's forward pass, and the longest cache; also ``beside``'s."""
        options, tracker = self.config["rollout"], self.tracker
        sampling = Sampling(temperature, options["top_p"], options["top_k"], options["max_new_tokens"])
        rows = min(rows, options["batch_size"])
        last = max(min(prompt + options["max_new_tokens"], lm.max_positions or 2**62) - 1, 1)
        with self._autocast(), evaluating(lm.model):
            with self._phase(phase), tracker.within("KV cache"):
                self._token(lm, rows, prompt, None, sampling)
                if beside is not None:
                    self._token(beside, rows, prompt, None, sampling)
            # The cache as it is before the last token, without what a forward pass over as many tokens would take.
            with tracker.paused():
                cache = self._token(lm, rows, last, None, sampling)
                caches = [cache] if beside is None else [cache, self._token(beside, rows, last, None, sampling)]
            with self._phase(phase), tracker.within("KV cache"):
                tracker.add_all([vars(layer) for each in caches if each is not None for layer in each.layers])
                self._token(lm, rows, last, cache, sampling)

    def _token(self, lm: CausalLM, rows: int, length: int, cache: Any, sampling: Sampling) -> Any:
        """One forward pass of the decode loop, over the prompt or over one token more, and the draw."""
        width = length if cache is None else 1
        total = length if cache is None else length + 1
        if "past_key_values" not in inspect.signature(unwrap(lm.model).forward).parameters:
            # Without a cache the whole sequence is read again for each token.
            ids = torch.zeros((rows, length), dtype=torch.long)
            return self._draw(lm.head(lm.hidden(ids, torch.ones_like(ids))[:, -1]), sampling)
        output = lm.model(
            input_ids=torch.zeros((rows, width), dtype=torch.long),
            attention_mask=torch.ones((rows, total), dtype=torch.long),
            past_key_values=DynamicCache() if cache is None else cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._draw(output.logits[:, -1, : lm.vocab_size], sampling)
        return output.past_key_values

    def _draw(self, logits: Tensor, sampling: Sampling) -> None:
        with self.tracker.within("rollout's logits"):
            sample(logits, sampling, torch.zeros(len(logits), dtype=torch.float64))

    def _evaluate(self, phase: str) -> None:
        work, student = self.work, self.student
        self._generate(student, work.eval_rows, work.eval_prompt, 0.0, phase)
        if self.teacher is None:
            return
        self._generate(student, work.eval_rows, work.eval_prompt, 1.0, phase)
        rows = min(work.eval_rows, self.config["rollout"]["batch_size"])
        new = room(work.eval_prompt, self.config["rollout"]["max_new_tokens"], student.max_positions)
        batch = self._batch(rows, work.eval_prompt + new, rows * new)
        told = self._batch(rows, work.eval_prompt + new + work.told, rows * new)
        with self._phase(phase), self._autocast(), evaluating(student.model):
            with self.tracker.within("activations"):
                both = student.signal(batch), self.teacher.signal(told)
            with self.tracker.within("loss workspace"):
                _divergences(*both)

    def _batch(self, rows: int, length: int, positions: int) -> FakeBatch:
        mask = torch.ones((rows, length), dtype=torch.bool)
        numbers = torch.zeros(positions, dtype=torch.long)
        return FakeBatch(torch.zeros((rows, length), dtype=torch.long), mask, mask, numbers, positions)

    def _autocast(self) -> AbstractContextManager[Any]:
        trainer = self.config["trainer"]
        # Under ZeRO the weights themselves are bf16.
        mixed = trainer["precision"] == "bf16-mixed" and not is_zero(trainer)
        return torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext()

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self.tracker.restart()
        yield
        former = self.phases.get(name)
        if former is None or former.resident < self.tracker.peak.resident:
            self.phases[name] = self.tracker.peak


def _divergences(student: Signal, teacher: Signal) -> None:
    both = log_probs_of_both(student.head(student.hidden[:CHUNK]), teacher.head(teacher.hidden[:CHUNK]))
    for divergence in (reverse_kl, forward_kl):
        divergence(*both, normalised=True).double().sum()
