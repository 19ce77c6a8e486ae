"""Attention and MLP weights move on along their update as far as a score gets better (EffOPD, arXiv 2605.11739)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from distill import distributed
from distill.analysis.naming import EXTRAPOLATED, place
from distill.callbacks import snapshots
from distill.callbacks.deadline import Deadline
from distill.callbacks.snapshots import Snapshot, Writer
from distill.callbacks.steps import StepCallback
from distill.errors import RunError, UserError
from distill.masters import Masters
from distill.selection import integers

KEYS = (
    "extrapolation/accepted",
    "extrapolation/tried",
    "extrapolation/score_before",
    "extrapolation/score_after",
    "extrapolation/evaluations",
    "extrapolation/tokens",
    "time/extrapolation",
    "time/extrapolation_total",
)
"""Keys recorded at steps that are powers of two: the largest k that was accepted (0: none), how many candidates were
tried, the score of the weights as the optimizer left them and as they go on. Since the run began, over all attempts:
how often the score was taken, and the tokens that all ranks generated for it. Then the seconds it took, now and since
the run began; they are part of ``time``."""
KEY = "callbacks.extrapolation"

Score = Callable[[Callable[[int], None]], float]
"""Takes the score of the weights as they are, the larger the better, and tells how many tokens it generates; NaN where
logits are not finite. A collective; it need not be the same on every rank, the one of rank 0 counts."""


def check_examples(examples: int, rows: int) -> None:
    """Raises UserError where there are fewer training rows than the score is to be taken on."""
    if examples > rows:
        raise UserError(f"{KEY}.examples", examples, f"at most {rows}, the number of training rows")


def candidate(base: Tensor, now: Tensor, k: int) -> Tensor:
    """θ_base + (1 + 2k)(θ - θ_base), in the dtype of θ = ``now``; ``k`` 0 is θ itself.

    Computed in fp32. A coordinate whose bits have not changed since θ_base keeps them, -0.0 and NaN included.
    """
    if k == 0:
        return now
    base = base.to(now.dtype)
    start = base.float()
    moved = (now.float() - start).mul_(1 + 2 * k).add_(start).to(now.dtype)
    return torch.where(integers(now) == integers(base), now, moved)


@dataclass(frozen=True)
class Outcome:
    """The last candidate that was accepted (0: none), how many were tried, and the scores of θ and of what stays."""

    accepted: int
    tried: int
    before: float
    after: float


def search(score: Callable[[int], float], candidates: int) -> Outcome:
    """Takes candidate after candidate while each is strictly better than the one before; ``score(0)`` is that of θ.

    A score that is NaN is never better.
    """
    before = best = score(0)
    for k in range(1, candidates + 1):
        found = score(k)
        if not found > best:
            return Outcome(k - 1, k, before, best)
        best = found
    return Outcome(candidates, candidates, before, best)


class Extrapolation(StepCallback):
    """After optimizer steps 1, 2, 4, 8 … moves on along d = θ - θ_base as far as ``score`` gets better.

    Candidates are θ_base + (1 + 2k)d, k = 1 … ``candidates``; the first that is not strictly better than what is held
    is rolled back and ends the search. What is held then is the new θ_base; θ_base of the first step are the weights
    that training begins with. That is the paper's rule. Our reading, in agreement with the authors' public code: k is
    compared with k - 1 (k = 1 with θ itself), and θ_base becomes θ where nothing was accepted. Theirs picks
    parameters by parts of names, which takes the norms inside of attention along; here those are norms.

    Moments, learning rate and step count stay as they are. Under ZeRO a rank has θ_base and θ of its share alone, both
    in CPU memory; candidates are computed from the two, so that going back to an earlier one restores its bits.
    θ_base is written to ``folder`` beside each checkpoint (once per θ_base), as long as one of the checkpoints, whose
    steps ``saved`` tells, needs it: a resumed run goes on from the same bits, under any strategy and number of ranks.
    """

    label = "extrapolation"

    def __init__(
        self,
        score: Score,
        candidates: int,
        folder: Path,
        *,
        saved: Callable[[], Iterable[int]] = tuple,
        on_progress: Callable[[int], None] | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        self.score, self.candidates, self.folder, self.saved = score, candidates, folder, saved
        self.on_progress, self.deadline = on_progress, deadline
        self.evaluations, self.tokens, self.seconds = 0, 0, 0.0
        self._generated = 0
        self._base: list[Tensor] = []
        self._since: int | None = None
        self._written: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Finds the weights. Raises UserError if none of attention or MLPs is trained."""
        named = pl_module.lm.model.named_parameters()
        self._trained = {name: parameter for name, parameter in named if parameter.requires_grad}
        self._wanted = [name for name in self._trained if place(name).group in EXTRAPOLATED]
        if not self._wanted:
            raise UserError(KEY, {"candidates": self.candidates}, "null: no attention or MLP weight is trained")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        sharded = trainer.strategy.handles_gradient_accumulation
        self._masters = Masters(trainer.optimizers[0], self._trained, self._wanted, sharded=sharded)
        if trainer.global_step:
            self._base = self._restored()
        else:
            self._base, self._since = self._masters.read(), 0

    def on_step(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        if step & (step - 1):
            return
        began = time.perf_counter()
        now = self._masters.read()
        found = search(partial(self._score, now), self.candidates)
        if found.tried > found.accepted:
            self._write(now, found.accepted)
        # Read again: weights without masters are the rounded candidate.
        self._base, self._since = self._masters.read() if found.accepted else now, step
        self.tokens += int(distributed.all_sum(torch.tensor(self._generated)))
        self._generated = 0
        took = time.perf_counter() - began
        self.seconds += took
        if self.deadline is not None:
            self.deadline.spared = took * (self.candidates - found.tried) / (found.tried + 1)
        pl_module.record(self._metrics(found, took))

    def _metrics(self, found: Outcome, took: float) -> dict[str, float]:
        scores = found.accepted, found.tried, found.before, found.after
        return dict(zip(KEYS, (*scores, self.evaluations, self.tokens, took, self.seconds), strict=True))

    def _score(self, now: list[Tensor], k: int) -> float:
        if k:
            self._write(now, k)
        self.evaluations += 1
        told: Any = distributed.gather_objects(self.score(self._heard))[0]
        if k == 0 and math.isnan(told):
            raise RunError(f"`{KEY}`: the student's logits, or its teacher's, are NaN; checkpoints stay as they are.")
        return float(told)

    def _write(self, now: list[Tensor], k: int) -> None:
        self._masters.write(candidate(*pair, k) for pair in zip(self._base, now, strict=True))

    def _heard(self, tokens: int) -> None:
        self._generated += tokens
        if self.on_progress is not None:
            self.on_progress(tokens)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._since is not None and self._written != self._since:
            writer = Writer(self.folder, self._since, f"{KEY}=null")
            for part, own, values in zip(self._masters.parts, self._masters.own, self._base, strict=True):
                if own:
                    writer.add(part.name, part.low, values)
            writer.publish()
            self._written = self._since
        if distributed.rank() == 0:
            snapshots.prune(self.folder, self.saved())

    def _restored(self) -> list[Tensor]:
        """θ_base of the checkpoint. A collective; raises UserError on every rank where one does not find it."""
        if self._since is None:
            raise UserError(KEY, {"candidates": self.candidates}, "null, as in the run that is resumed")
        problem, found = "", None
        try:
            found = Snapshot(self.folder, self._since)
            found.check({name: math.prod(shape) for name, shape in self._masters.shapes.items()})
        except ValueError as error:
            problem = str(error)
        if problems := [told for told in distributed.gather_objects(problem) if told]:
            allowed = f"null, or resume the run where the weights it extrapolates from are ({problems[0]})"
            raise UserError(KEY, {"candidates": self.candidates}, allowed)
        assert found is not None
        self._written = self._since
        # A copy: the file is mapped, and goes when no checkpoint needs it.
        return [found.read(part.name, part.low, part.numel).clone() for part in self._masters.parts]

    def state_dict(self) -> dict[str, Any]:
        counted = {"evaluations": self.evaluations, "tokens": self.tokens, "seconds": self.seconds}
        return {"since": self._since, **counted}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._since, self.seconds = state_dict["since"], state_dict["seconds"]
        self.evaluations, self.tokens = state_dict["evaluations"], state_dict["tokens"]
