"""The teacher is shown examples of the data and writes another one, prompt and answer."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from distill.data import chat
from distill.data.arithmetic import Arithmetic
from distill.data.base import Dataset
from distill.data.encode import Encoder, Origin, answering
from distill.errors import UserError
from distill.labelling.records import ending, read_again, record, text_of
from distill.models import CausalLM
from distill.rollouts.decode import Completion, Sampling, generate
from distill.rollouts.seeds import row_seed, uniforms
from distill.types import Sample

STEP, EXAMPLES = -3, -4
"""Stand for the optimizer step in the seeds of what is sampled, and of which examples are shown."""


@dataclass(frozen=True)
class Form:
    """How an example is written down, and found again in what the teacher writes: ``before`` {prompt} ``between``
    {completion} ``after``."""

    before: str
    between: str
    after: str

    @classmethod
    def of(cls, template: str) -> Form:
        before, rest = template.split("{prompt}")
        return cls(before, *rest.split("{completion}"))

    def write(self, prompt: str, completion: str) -> str:
        return f"{self.before}{prompt}{self.between}{completion}{self.after}"

    @property
    def opening(self) -> str:
        """The beginning of another example. White space at its end would be in the way of most tokenizers."""
        return self.before.rstrip()

    def find(self, text: str, stopped: bool) -> tuple[str, str] | None:
        """Prompt and completion of the first example; None without one, or if it has no end: neither the beginning
        of the next nor, if the teacher ``stopped``, that of the text. White space is as the form has it, or free."""
        end = re.escape(self.after + self.opening) + ("|\\Z" if stopped else "")
        for before, between in ((self.before, self.between), (self.opening, self.between.rstrip())):
            free = "\\s*" if (before, between) != (self.before, self.between) else ""
            marks = (re.escape(before) + free, re.escape(between or self.between) + free)
            found = re.search(f"{marks[0]}(?P<p>.*?){marks[1]}(?P<c>.*?)(?:{end})", text, re.DOTALL)
            if found is not None:
                return found["p"], found["c"].removesuffix(self.after).rstrip()
        return None


@dataclass(frozen=True)
class Synthetic:
    """Draw ``d`` shows examples of its own, in an order of its own; a part has ``rows`` draws, decoded at once, and
    the last one is whole: there may be ``draws`` and some more, and raising them later adds parts, but changes none.

    ``encoder`` reads what is shown and what was written, as conversations if it has a chat template. ``sums`` know the
    answers to sums in their form.
    """

    lm: CausalLM
    data: Dataset
    encoder: Encoder
    sums: tuple[Arithmetic, ...]
    sampling: Sampling
    seed: int
    rows: int
    draws: int
    examples: int
    form: Form
    instruction: str
    verify: bool

    @property
    def parts(self) -> int:
        return math.ceil(self.draws / self.rows)

    def make(self, number: int) -> list[dict[str, Any]]:
        """The records of a part: a function of the settings and its number."""
        span = range(number * self.rows, (number + 1) * self.rows)
        shown = {draw: choose(self.seed, draw, self.examples, len(self.data)) for draw in span}
        prompts = {draw: self._prompt(chosen) for draw, chosen in shown.items()}
        fitting = {draw: ids for draw, ids in prompts.items() if len(ids) < self.encoder.limit}
        seeds = [row_seed(self.seed, STEP, draw, 0) for draw in fitting]
        written = generate(self.lm, list(fitting.values()), self.sampling, seeds, self.rows)
        completions = dict(zip(fitting, written, strict=True))
        return [
            self._record(completions[draw], shown[draw], draw)
            if draw in completions
            else record({"draw": draw}, "too_long", 0)
            for draw in span
        ]

    def _prompt(self, chosen: list[int]) -> tuple[int, ...]:
        """The examples one after the other, or as the teacher's answers so far, and the beginning of the next."""
        texts = [self.form.write(*pair(self.data.row(index))) for index in chosen]
        origin, unlimited = Origin("label.examples", f"rows {chosen}"), replace(self.encoder, limit=sys.maxsize)
        if not self.encoder.chat_template:
            return unlimited.text("".join(texts) + self.form.opening, None, origin).prompt_ids
        asking = {"role": "user", "content": self.instruction}
        turns = [turn for text in texts for turn in (asking, answering(text.rstrip()))]
        before = unlimited.messages([*turns, asking], origin).prompt_ids
        return (*before, *chat.encode(self.lm.tokenizer, self.form.opening))

    def _record(self, completion: Completion, chosen: list[int], draw: int) -> dict[str, Any]:
        text = text_of(self.lm, completion)
        found = self.form.find(self.form.opening + text, completion.stopped)
        if found is None or not all(part.strip() for part in found):
            return record({"text": text, "draw": draw}, ending(completion, text) or "unparsed", len(completion.ids))
        row = self.encoder.row(*found)
        answer = next((answer for sums in self.sums if (answer := sums.solve(found[0])) is not None), None)
        right = answer is None or self.sums[0].score(Sample(0, (), answer=answer), found[1]) == 1
        row |= {} if answer is None else {"answer": str(answer)}
        row |= {"draw": draw, "examples": chosen}
        dropped = None if right or not self.verify else "wrong"
        if read_again(row, self.encoder) is None:
            dropped = "unreadable"
        return record(row, dropped, len(completion.ids), verified=self.verify and answer is not None)


def choose(seed: int, draw: int, count: int, size: int) -> list[int]:
    """``count`` different numbers below ``size`` in a random order: a function of the arguments."""
    stream, chosen, position = np.array([row_seed(seed, EXAMPLES, draw, 0)], dtype=np.uint64), list[int](), 0
    while len(chosen) < count:
        index = int(uniforms(stream, position)[0] * size)
        chosen += [] if index in chosen else [index]
        position += 1
    return chosen


def pair(row: Mapping[str, Any]) -> tuple[str, str]:
    """Prompt and completion of a row.

    Raises:
        UserError: it is a conversation of several turns.
    """
    if "messages" not in row:
        return row["prompt"], row["completion"]
    turns = [message for message in row["messages"] if message["role"] != "system"]
    if [message["role"] for message in turns] != ["user", "assistant"]:
        roles = ", ".join(message["role"] for message in turns)
        allowed = "'given' for conversations of several turns, which cannot be shown as examples"
        raise UserError("label.prompts", f"synthetic ({roles})", allowed)
    return turns[0]["content"], turns[1]["content"]
