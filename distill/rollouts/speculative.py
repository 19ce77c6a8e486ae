"""Speculative knowledge distillation: the student proposes, the teacher replaces what it finds unlikely.

Source: SKD, arXiv 2410.11325. A proposed token stays if it is among the K likeliest of the teacher's plain
distribution, else the teacher draws one in its place. Proposals come in blocks of γ, which the teacher reads in one
pass: the longest accepted beginning stays, then comes one token of the teacher (none if all were accepted). ``B`` rows,
``H`` the teacher's hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from distill import distributed, sharding
from distill.errors import RunError, UserError
from distill.models.causal_lm import CausalLM, evaluating
from distill.rollouts.decode import COMPACT_AT, room
from distill.rollouts.ragged import RaggedCache
from distill.rollouts.sampling import Sampling, sample
from distill.rollouts.seeds import row_seed, teacher_seed, uniforms
from distill.types import Row, Sample


@dataclass(frozen=True)
class Speculation:
    """``student`` and ``teacher`` say how either draws, ``top_k`` (K) what is accepted, ``draft`` (γ) the block.

    ``teacher.max_new_tokens`` is not used. Raises UserError for a value that makes no sense.
    """

    student: Sampling
    teacher: Sampling
    draft: int = 5
    top_k: int = 25

    def __post_init__(self) -> None:
        for key, value in (("draft_length", self.draft), ("accept_top_k", self.top_k)):
            if value < 1:
                raise UserError(f"rollout.{key}", value, "at least 1")


Ends = tuple[frozenset[int], frozenset[int]]
"""Tokens that end a sequence when the student wrote them, and when the teacher did."""


@dataclass
class Draft:
    """A completion as it grows. ``replaced`` marks the teacher's tokens; ``states`` ``[len(ids), H]`` are the teacher's
    that predict each token; ``calls`` counts the passes of the teacher it took; ``stopped`` by an end-of-sequence
    token."""

    prompt: Sequence[int]
    seed: int
    room: int
    ids: list[int] = field(default_factory=list)
    replaced: list[bool] = field(default_factory=list)
    parts: list[Tensor] = field(default_factory=list)
    calls: int = 0
    stopped: bool = False

    @property
    def ended(self) -> bool:
        return self.stopped or len(self.ids) == self.room

    @property
    def states(self) -> Tensor:
        return torch.cat(self.parts)

    def extend(self, ids: list[int], replaced: bool, states: Tensor, ends: Ends) -> None:
        """Appends the tokens of a block, the last one of them the teacher's if ``replaced``, as far as there is room
        and up to a token that ends a sequence for whoever wrote it."""
        before = len(self.ids)
        for place, token in enumerate(ids):
            if self.ended:
                break
            theirs = replaced and place == len(ids) - 1
            self.ids.append(token)
            self.replaced.append(theirs)
            self.stopped = token in ends[theirs]
        self.parts.append(states[: len(self.ids) - before].clone())
        self.calls += 1


def speculate(
    student: CausalLM,
    teacher: CausalLM,
    prompts: Sequence[Sequence[int]],
    speculation: Speculation,
    seeds: Sequence[int],
    batch_size: int = 256,
    on_progress: Callable[[int], None] | None = None,
) -> list[Draft]:
    """Continues each prompt, in the order given; ``seeds[i]`` (63 bits) is all the randomness of row ``i``.

    The draw at a position depends on the seed and the position alone, so that blocks of any length give the same
    tokens, and those of :func:`distill.rollouts.decode.generate` where nothing is rejected (up to float rounding).
    Tokens as likely as the K-th are accepted, too; what the teacher has masked (-inf) never is.

    Raises UserError as ``generate`` does, and for models without a cache that can be cropped; RunError for logits
    that are not finite.
    """
    limit = speculation.student
    drafts = [
        Draft(prompt, seed, min(room(student, len(prompt), limit), room(teacher, len(prompt), limit)))
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    ordered = sorted(drafts, key=lambda draft: -len(draft.prompt))
    with evaluating(student.model), evaluating(teacher.model):
        for start in range(0, len(ordered), batch_size):
            _Blocks(student, teacher, ordered[start : start + batch_size], speculation).run(on_progress)
    return drafts


class SpeculativeRollout:
    """Rows of which student and teacher wrote each some tokens; a function of both weights and (seed, step, sample,
    copy). They carry the teacher's states, so that its signal takes no second pass, and how much it had to do.

    ``on_progress`` and ``context`` are those of :class:`distill.rollouts.on_policy.OnPolicyRollout`.
    """

    on_policy = False

    def __init__(
        self,
        student: CausalLM,
        teacher: CausalLM,
        speculation: Speculation,
        seed: int,
        batch_size: int = 256,
        on_progress: Callable[[int], None] | None = None,
        context: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.student, self.teacher, self.speculation, self.seed = student, teacher, speculation, seed
        self.batch_size, self.on_progress, self.context = batch_size, on_progress, context

    def __call__(self, samples: list[Sample], copies: list[int], step: int) -> list[Row]:
        seeds = [row_seed(self.seed, step, sample.id, copy) for sample, copy in zip(samples, copies, strict=True)]
        prompts = [sample.prompt_ids for sample in samples]
        with self.context():
            drafts = speculate(
                self.student, self.teacher, prompts, self.speculation, seeds, self.batch_size, self.on_progress
            )
        return [drafted(sample, draft) for sample, draft in zip(samples, drafts, strict=True)]


def drafted(sample: Sample, draft: Draft) -> Row:
    """Prompt and completion as one row."""
    input_ids = torch.tensor([*sample.prompt_ids, *draft.ids])
    replaced = sum(draft.replaced)
    counts = {"accepted": len(draft.ids) - replaced, "replaced": replaced, "teacher_calls": draft.calls}
    return Row(
        sample.id,
        input_ids,
        torch.arange(len(input_ids)) >= len(sample.prompt_ids),
        stopped=draft.stopped,
        # With the rest of the row: micro-batches take theirs back to the device.
        teacher_states=draft.states.cpu(),
        counts=counts,
        briefing=sample.briefing,
        replaced=torch.tensor(draft.replaced),
    )


class _Blocks:
    """A batch of drafts inside both models. ``pending`` tokens are those that neither has read."""

    def __init__(self, student: CausalLM, teacher: CausalLM, drafts: list[Draft], speculation: Speculation) -> None:
        self.drafts, self.speculation = drafts, speculation
        self.ends: Ends = student.eos_ids, student.eos_ids | teacher.eos_ids
        self.student = RaggedCache(student, len(drafts), "student.path")
        self.teacher = RaggedCache(teacher, len(drafts), "teacher.path")
        width = max(len(draft.prompt) for draft in drafts)
        padded = [[student.pad_id] * (width - len(draft.prompt)) + list(draft.prompt) for draft in drafts]
        self.pending = torch.tensor(padded, device=self.student.device)
        lengths = torch.tensor([len(draft.prompt) for draft in drafts], device=self.student.device)
        self.valid = torch.arange(width, device=self.student.device) >= width - lengths[:, None]
        # While weights are in shards every pass takes all ranks: those that have finished go on beside them.
        self.together = sharding.is_sharded(student.model.parameters())

    def run(self, on_progress: Callable[[int], None] | None) -> None:
        while True:
            before = sum(len(draft.ids) for draft in self.drafts)
            self._block()
            if on_progress is not None:
                on_progress(sum(len(draft.ids) for draft in self.drafts) - before)
            lines = [line for line, draft in enumerate(self.drafts) if not draft.ended]
            if not (distributed.all_max(len(lines)) if self.together else lines):
                return
            lines = lines or [0]
            if len(self.drafts) - len(lines) >= COMPACT_AT * len(self.drafts):
                self._keep(lines)

    def _block(self) -> None:
        proposed = self._propose()
        tokens = torch.cat([self.pending, proposed[:, :-1]], 1)
        states = self.teacher.read(tokens, self._valid(tokens.shape[1]))[:, -self.speculation.draft :]
        taken, replaced = self._verify(proposed, states)
        # Read back at once: on a GPU each look waits for all that came before.
        blocks = zip(self.drafts, proposed.tolist(), taken.tolist(), replaced.tolist(), states, strict=True)
        for draft, ids, count, theirs, told in blocks:
            if not draft.ended:
                draft.extend(ids[:count], theirs, told[:count], self.ends)
        for cache in (self.student, self.teacher):
            cache.take_back(self.speculation.draft - taken)
        self.pending = proposed.gather(1, taken[:, None] - 1)
        self.valid = torch.ones_like(self.pending, dtype=torch.bool)

    def _propose(self) -> Tensor:
        """γ tokens of the student ``[B, γ]``."""
        tokens, proposed = self.pending, list[Tensor]()
        for place in range(self.speculation.draft):
            states = self.student.read(tokens, self.valid if place == 0 else torch.ones_like(tokens, dtype=torch.bool))
            with sharding.gathered(self.student.lm.head_parameters):
                logits = self.student.lm.head(states[:, -1])
            proposed.append(sample(logits, self.speculation.student, self._uniform(place), "student")[0])
            tokens = proposed[-1][:, None]
        return torch.stack(proposed, 1)

    def _verify(self, proposed: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """How many tokens of each row stay ``[B]``, and whether the last of them is the teacher's ``[B]``.

        Writes the teacher's tokens into ``proposed``. One position at a time, as logits of all may be large.
        """
        taken = torch.zeros(len(proposed), dtype=torch.long, device=proposed.device)
        open_ = torch.ones_like(taken, dtype=torch.bool)
        for place in range(self.speculation.draft):
            logits = self.teacher.lm.head(states[:, place]).float()
            if not bool(logits.logsumexp(-1).isfinite().all()):
                raise RunError("The teacher's logits are not finite: its weights hold NaN or inf.")
            token = proposed[:, place]
            own = logits.gather(1, token[:, None])
            above = (logits > own).sum(-1)
            taken += open_
            # Where less than K tokens are not masked the K-th is as likely as any that is.
            rejected = open_ & ((above >= self.speculation.top_k) | (own.squeeze(1) == -math.inf))
            if bool(rejected.any()):
                draws = self._uniform(place, teacher_seed)[rejected]
                proposed[rejected, place] = sample(logits[rejected], self.speculation.teacher, draws)[0]
            open_ &= ~rejected
        return taken, ~open_

    def _uniform(self, place: int, seed: Callable[[int], int] = int) -> Tensor:
        """One draw per row ``[B]`` for its token number ``place`` of this block."""
        seeds = np.array([seed(draft.seed) for draft in self.drafts], dtype=np.uint64)
        positions = np.array([len(draft.ids) + place for draft in self.drafts], dtype=np.uint64)
        return torch.from_numpy(uniforms(seeds, positions)).to(self.student.device)

    def _valid(self, width: int) -> Tensor:
        return torch.nn.functional.pad(self.valid, (0, width - self.valid.shape[1]), value=True)

    def _keep(self, lines: list[int]) -> None:
        index = torch.tensor(lines, device=self.student.device)
        self.drafts = [self.drafts[line] for line in lines]
        self.pending, self.valid = self.pending[index], self.valid[index]
        self.student.keep(index)
        self.teacher.keep(index)
