"""Data that flows between the parts: samples → rows → batch → signals.

Shape legend, used in the whole package: ``B`` rows, ``T`` time, ``V`` shared vocabulary (of images: classes), ``H``
hidden width, ``K`` top-k, ``N`` valid positions (target tokens) of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

Head = Callable[[Tensor], Tensor]
"""Maps hidden states ``[..., H]`` to logits ``[..., V]`` over the shared, unpadded vocabulary."""


@dataclass(frozen=True)
class Briefing:
    """What a sample tells its teacher alone.

    ``member`` names the one of several teachers that teaches it. ``prompt_ids``, unless empty, are what the teacher
    reads in place of the first ``replaces`` ids of the sequence, none of which is a target; the rest is the same to it.
    """

    member: str | None = None
    prompt_ids: tuple[int, ...] = ()
    replaces: int = 0


@dataclass(frozen=True)
class Sample:
    """One tokenised example of a dataset.

    ``prompt_ids`` is what a rollout continues. ``input_ids`` and ``target_mask`` (same length) are the full example
    with ground-truth completion, or empty for a prompt without one. ``answer`` is whatever the dataset's verifier
    needs.
    """

    id: int
    prompt_ids: tuple[int, ...]
    input_ids: tuple[int, ...] = ()
    target_mask: tuple[bool, ...] = ()
    answer: Any = None
    briefing: Briefing = Briefing()

    @property
    def has_completion(self) -> bool:
        return any(self.target_mask)


@dataclass(frozen=True)
class Row:
    """One sequence to train on: ``input_ids`` int64 ``[T]``, ``target_mask`` bool ``[T]`` (tokens that are predicted).

    ``sampler_logprobs`` (fp32 ``[T]``, 0 outside targets) is log p of each token under the policy that sampled it, and
    None for dataset completions. ``stopped`` tells whether the sequence ended by itself (an end-of-sequence token)
    rather than at the length limit. ``teacher_states`` ``[targets, H]`` are the teacher's that predict each target,
    where the rollout asked it already; ``counts`` is what else the rollout counted, under the same names in every row,
    summed like the targets. ``replaced`` bool ``[targets]`` marks the tokens a teacher put in place of the student's,
    where a rollout lets it.
    """

    sample_id: int
    input_ids: Tensor
    target_mask: Tensor
    sampler_logprobs: Tensor | None = None
    stopped: bool = True
    teacher_states: Tensor | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    briefing: Briefing = Briefing()
    replaced: Tensor | None = None

    @property
    def length(self) -> int:
        """What a row costs: rows of a micro-batch have similar ones."""
        return len(self.input_ids)

    @property
    def positions(self) -> int:
        """How many targets it has: the first token is none."""
        return int(self.target_mask[1:].sum())

    @property
    def briefed(self) -> Row:
        """The sequence as the teacher reads it: another beginning before the very same ids and targets."""
        prompt, kept = torch.tensor(self.briefing.prompt_ids, dtype=torch.long), self.briefing.replaces
        if len(prompt) == 0:
            return self
        assert not self.target_mask[:kept].any(), "the teacher would miss a target"
        mask = torch.cat([torch.zeros(len(prompt), dtype=torch.bool), self.target_mask[kept:]])
        told = replace(self.briefing, prompt_ids=())
        ids = torch.cat([prompt, self.input_ids[kept:]])
        return replace(self, input_ids=ids, target_mask=mask, sampler_logprobs=None, briefing=told)


class MicroBatch(Protocol):
    """What training and teachers see of a micro-batch, whatever it is made of.

    ``inputs`` is what a model's ``hidden`` takes, ``select`` picks the states of the ``N`` targets from what it gives.
    ``target_logprobs`` ``[N]`` are those of a policy that sampled the targets, None where nothing was sampled; ``rows``
    int64 ``[N]`` says which row of the inputs each target is of.
    """

    @property
    def inputs(self) -> tuple[Tensor, ...]: ...

    @property
    def targets(self) -> Tensor: ...

    @property
    def target_logprobs(self) -> Tensor | None: ...

    @property
    def window_positions(self) -> int: ...

    @property
    def on_policy(self) -> bool: ...

    @property
    def counts(self) -> Mapping[str, int]: ...

    @property
    def teacher_states(self) -> Tensor | None: ...

    @property
    def rows(self) -> Tensor: ...

    @property
    def for_teacher(self) -> MicroBatch: ...

    def select(self, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Batch:
    """One micro-batch, right-padded to ``[B, T]``.

    ``target_mask[b, t]`` says that token ``t`` is a target, predicted from the hidden state at ``t - 1``; column 0 is
    always False. ``window_positions`` counts the targets of the whole optimizer step over all micro-batches and ranks:
    the only denominator a loss may use. ``teacher_states`` ``[N, H]`` and ``counts`` are those of the rows.
    ``members`` names the teacher of each row; ``briefed`` is the batch as the teacher reads it, with the same ``N``
    targets, where it reads another prompt.
    """

    input_ids: Tensor
    attention_mask: Tensor
    target_mask: Tensor
    sample_ids: Tensor
    window_positions: int
    sampler_logprobs: Tensor | None = None
    on_policy: bool = False
    teacher_states: Tensor | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    members: tuple[str | None, ...] = ()
    briefed: Batch | None = None

    def to(self, device: torch.device | str, **kwargs: Any) -> Batch:
        """Moves every tensor; the name and keywords are those Lightning calls."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor | Batch)}
        moved: dict[str, Any] = {name: value.to(device, **kwargs) for name, value in tensors.items()}
        return replace(self, **moved)

    @property
    def for_teacher(self) -> Batch:
        """What a teacher is to read."""
        return self if self.briefed is None else self.briefed

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.input_ids, self.attention_mask

    @property
    def target_logprobs(self) -> Tensor | None:
        return None if self.sampler_logprobs is None else self.sampler_logprobs[self.target_mask]

    @property
    def targets(self) -> Tensor:
        """Target token ids ``[N]``, row by row."""
        return self.input_ids[self.target_mask]

    @property
    def rows(self) -> Tensor:
        return self.target_mask.nonzero()[:, 0]

    def select(self, hidden: Tensor) -> Tensor:
        """``[B, T, H] → [N, H]``: the states that predict the targets, aligned with :attr:`targets`."""
        return hidden[:, :-1][self.target_mask[:, 1:]]


@dataclass(frozen=True)
class Signal:
    """What a model says at the ``N`` targets: hidden states ``[N, H]`` and the head that turns them into logits."""

    hidden: Tensor
    head: Head


def collate(rows: list[Row], pad_id: int, window_positions: int, on_policy: bool) -> Batch:
    """Right-pads rows into one batch. Masks come from lengths, never from ``pad_id`` (it may equal EOS)."""
    lengths = [len(row.input_ids) for row in rows]
    shape = (len(rows), max(lengths))
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.bool)
    target_mask = torch.zeros(shape, dtype=torch.bool)
    sampled = rows[0].sampler_logprobs is not None
    logprobs = torch.zeros(shape) if sampled else None
    for b, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        input_ids[b, :length] = row.input_ids
        attention_mask[b, :length] = True
        target_mask[b, :length] = row.target_mask
        if logprobs is not None and row.sampler_logprobs is not None:
            logprobs[b, :length] = row.sampler_logprobs
    target_mask[:, 0] = False
    ids = torch.tensor([row.sample_id for row in rows])
    told = [row.teacher_states for row in rows if row.teacher_states is not None]
    states = torch.cat(told) if told else None
    counts = {name: sum(row.counts[name] for row in rows) for name in rows[0].counts}
    members = tuple(row.briefing.member for row in rows)
    told_more = any(row.briefing.prompt_ids for row in rows)
    briefed = collate([row.briefed for row in rows], pad_id, window_positions, on_policy) if told_more else None
    return Batch(
        input_ids,
        attention_mask,
        target_mask,
        ids,
        window_positions,
        logprobs,
        on_policy,
        states,
        counts,
        members,
        briefed,
    )
