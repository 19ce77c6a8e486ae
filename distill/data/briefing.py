"""What samples tell their teacher alone: which of several teaches them, and a prompt that the student does not see."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import Any

from distill.data.base import Dataset
from distill.data.encode import Encoder, Origin
from distill.types import Briefing, Sample

Fields = Mapping[str, Any]
"""What a template can name: the columns of a row, of which numbers and text can be shown."""


@dataclass(frozen=True)
class Needs:
    """What a teacher asks of every sample: the field ``by`` that names one of ``members``, and the fields of the
    template ``prompt``. ``max_positions`` tokens are the longest sequence it reads (None: any), and up to
    ``max_new_tokens`` follow a prompt in a rollout."""

    by: str | None = None
    members: tuple[str, ...] = ()
    prompt: str | None = None
    max_positions: int | None = None
    max_new_tokens: int = 0

    @classmethod
    def of(cls, teacher: Mapping[str, Any], max_positions: int | None, max_new_tokens: int) -> Needs:
        """From the section ``teacher`` of a configuration."""
        return cls(teacher["by"], tuple(teacher["members"]), teacher["prompt"], max_positions, max_new_tokens)

    @property
    def fields(self) -> list[str]:
        """Names in the template."""
        parsed = Formatter().parse(self.prompt or "")
        return list(dict.fromkeys(name for _, name, _, _ in parsed if name is not None))


@dataclass(frozen=True)
class Briefer:
    """Gives each sample its briefing. ``student_positions`` limit a rollout, too."""

    encoder: Encoder
    needs: Needs = Needs()
    student_positions: int | None = None

    def __call__(
        self, sample: Sample, fields: Fields, origin: Origin, messages: Sequence[dict[str, Any]] | None = None
    ) -> Sample:
        """The sample with its briefing; ``fields`` are what the template may name, ``messages`` the conversation.

        Raises UserError for a field that is missing, an unknown member, or a sequence too long for the teacher.
        """
        if self.needs.by is None and self.needs.prompt is None:
            return sample
        self.check(fields, origin)
        member = None if self.needs.by is None else str(fields[self.needs.by])
        briefing = Briefing(member, *self._prompt(sample, fields, origin, messages))
        return replace(sample, briefing=briefing)

    def check(self, fields: Fields, origin: Origin) -> None:
        """Raises UserError for a row without what the teacher needs, without looking at tokens."""
        by, names = self.needs.by, ", ".join(self.needs.members)
        if by is not None and fields.get(by) not in self.needs.members:
            found = f"`{by}` {fields[by]!r}" if fields.get(by) is not None else f"no `{by}`"
            raise origin.error(found, f"rows whose `{by}` (teacher.by) is a member of the teacher: {names}")
        for name in self.needs.fields:
            if not isinstance(fields.get(name), str | int | float):
                found = f"no text or number in `{name}`"
                raise origin.error(found, f"rows with every field of teacher.prompt ({', '.join(self.needs.fields)})")

    def may_not_fit(self, fields: Fields, size: int) -> bool:
        """Whether the teacher's sequence could be too long, judged by bytes; ``size`` are those of the sequence."""
        limit = self.needs.max_positions
        if self.needs.prompt is None or limit is None:
            return False
        told = len(self.needs.prompt.format_map(fields).encode(errors="replace"))
        return told + size + self.needs.max_new_tokens > limit

    def _prompt(
        self, sample: Sample, fields: Fields, origin: Origin, messages: Sequence[dict[str, Any]] | None
    ) -> tuple[tuple[int, ...], int]:
        """Ids of the teacher's prompt, and how many of the student's they stand for."""
        if self.needs.prompt is None:
            return (), 0
        encoder = replace(self.encoder, limit=sys.maxsize)
        text, replaces = self.needs.prompt.format_map(fields), len(sample.prompt_ids)
        if messages is None:
            ids = encoder.text(text, None, origin).prompt_ids
        else:
            turn = asked(messages)
            before, after = messages[:turn], messages[turn + 1 :]
            if sample.has_completion:
                # Targets begin with the first answer; from there on the ids are the student's.
                after, replaces = [], sample.target_mask.index(True)
            ids = encoder.messages([*before, {**messages[turn], "content": text}, *after], origin).prompt_ids
        self._fits(sample, ids, replaces, origin)
        return ids, replaces

    def _fits(self, sample: Sample, ids: Sequence[int], replaces: int, origin: Origin) -> None:
        limit, prompt = self.needs.max_positions, len(sample.prompt_ids)
        if limit is None:
            return
        room = sys.maxsize if self.student_positions is None else self.student_positions - prompt
        rest = max(len(sample.input_ids), prompt + min(self.needs.max_new_tokens, room)) - replaces
        if len(ids) + rest > limit:
            raise origin.too_long(
                f"{len(ids)} tokens of teacher.prompt and {rest} after them",
                f"at most the {limit} tokens of the teacher's context (rollout.max_new_tokens counts)",
            )


def asked(messages: Sequence[Mapping[str, Any]]) -> int:
    """Which turn the template stands for: the one that the assistant's first answer follows, else the last."""
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    return (answers[0] if answers else len(messages)) - 1


class Mapped:
    """A dataset whose samples have gone through ``change``."""

    def __init__(self, dataset: Dataset, change: Callable[[Sample], Sample]) -> None:
        self.dataset, self.change = dataset, change

    @property
    def name(self) -> str:
        return self.dataset.name

    @property
    def has_verifier(self) -> bool:
        return self.dataset.has_verifier

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return self.change(self.dataset[index])

    def score(self, sample: Sample, completion: str) -> float:
        return self.dataset.score(sample, completion)

    def row(self, index: int) -> dict[str, Any]:
        return self.dataset.row(index)

    def describe(self) -> dict[str, Any]:
        return self.dataset.describe()

    def fingerprint(self) -> str:
        return self.dataset.fingerprint()


def told(sample: Sample) -> Sample:
    """The sample's prompt as its teacher reads it, to be continued."""
    brief = sample.briefing
    if not brief.prompt_ids:
        return sample
    return Sample(sample.id, brief.prompt_ids + sample.prompt_ids[brief.replaces :], answer=sample.answer)


def untold(sample: Sample) -> Sample:
    """The sample as if its teacher read what the student reads."""
    return replace(sample, briefing=replace(sample.briefing, prompt_ids=()))
