"""Prompts and conversations from files.

A row has ``messages`` (a list of ``{role, content}``) or ``prompt`` with an optional ``completion``; either may have
an ``answer`` for the verifier. Where a row has both, ``messages`` counts. Other columns are for the teacher, where it
asks for them (``teacher.by``, ``teacher.prompt``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from distill.data import records
from distill.data.base import check_index
from distill.data.briefing import Briefer, asked
from distill.data.encode import Origin, TooLongError
from distill.errors import UserError
from distill.types import Sample

log = logging.getLogger(__name__)

TOKENISED_AT_START = 1000
TEMPLATE_TOKENS = 256
"""More than what chat templates add to a conversation, when rows are judged by their bytes."""


@dataclass(frozen=True)
class Text:
    """Rows ``[start, start + size)`` of the records, tokenised on access. ``split`` says how they were chosen."""

    rows: records.Records
    briefer: Briefer
    key: str
    path: str
    start: int
    size: int
    split: str
    has_verifier: bool
    name: str = "text"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        check_index(index, self.size)
        row = self.rows[self.start + index]
        origin, encoder = Origin(self.key, self.rows.place(self.start + index)), self.briefer.encoder
        messages = None
        if row.get("messages") is not None:
            messages = [_present(message) for message in row["messages"]]
            encoded = encoder.messages(messages, origin)
        else:
            encoded = encoder.text(row["prompt"], row.get("completion"), origin)
        answer = row.get("answer")
        sample = Sample(index, *encoded, answer=None if answer is None else str(answer))
        return self.briefer(sample, _fields(row), origin, messages)

    def score(self, sample: Sample, completion: str) -> float:
        """1.0 if completion and answer are equal up to case, white space and Unicode form."""
        return float(sample.answer is not None and normalised(completion) == normalised(sample.answer))

    def row(self, index: int) -> dict[str, Any]:
        check_index(index, self.size)
        row = self.rows[self.start + index]
        if row.get("messages") is not None:
            found = {"messages": self.briefer.encoder.opened([_present(message) for message in row["messages"]])}
        else:
            found = self.briefer.encoder.row(row["prompt"], row.get("completion"))
        return found if row.get("answer") is None else found | {"answer": row["answer"]}

    def describe(self) -> dict[str, Any]:
        return {"source": "text", "path": self.path, "rows": self.size, "split": self.split}

    def fingerprint(self) -> str:
        content = hashlib.sha256()
        for row in islice(self.rows, self.start, self.start + self.size):
            content.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        return content.hexdigest()


def build(config: Mapping[str, Any], briefer: Briefer, completions: bool = False) -> tuple[Text, Text]:
    """Training and held-out rows; with ``completions`` no row of ``path`` may be a prompt alone.

    Held out are the first ``eval_size`` rows of ``eval_path``, or without one the last ``eval_size`` rows of
    ``path``, at most a tenth of them and at least one. Raises UserError naming file and line or row.
    """
    drop = config["too_long"] == "drop"
    rows = _checked(config["path"], "data.path", briefer, completions, drop)
    total = len(rows)
    if config["eval_path"] is not None:
        others = _checked(config["eval_path"], "data.eval_path", briefer, drop=drop)
        size = min(config["eval_size"], len(others))
        return rows, replace(others, size=size, split=f"the first {size} of {len(others)} rows")
    if total < 2:
        allowed = "data with at least two rows, one of them held out, unless data.eval_path is set"
        raise UserError("data.path", config["path"], allowed)
    size = max(1, min(config["eval_size"], total // 10))
    kept = total - size
    return (
        replace(rows, size=kept, split=f"the first {kept} of {total} rows"),
        replace(rows, start=kept, size=size, split=f"the last {size} of {total} rows, held out"),
    )


def _checked(path: str | None, key: str, briefer: Briefer, completions: bool = False, drop: bool = False) -> Text:
    """All rows of a path, the types of every row checked; with ``drop`` without those whose prompt does not fit.

    The first rows are tokenised as well, and of the others those whose prompt might not fit: a token stands for at
    least one byte. So a large file is checked in seconds, and a small one in full.
    """
    rows = records.read(path, key)
    whole = Text(rows, briefer, key, str(path), 0, len(rows), f"all {len(rows)} rows", has_verifier=False)
    answered, dropped = True, list[int]()
    for index, row in enumerate(rows):
        origin = Origin(key, rows.place(index))
        prompt_bytes = _check_row(row, origin)
        fields = _fields(row)
        briefer.check(fields, origin)
        if completions and not _completed(row):
            allowed = "rows with something to learn from (a completion), unless every rollout is on-policy (recipe=opd)"
            raise origin.error("a prompt alone", allowed)
        long = prompt_bytes + TEMPLATE_TOKENS >= briefer.encoder.limit
        try:
            if index < TOKENISED_AT_START or long or briefer.may_not_fit(fields, TEMPLATE_TOKENS + _size(row)):
                whole[index]
        except TooLongError as error:
            if not drop:
                allowed = f"{error.allowed}, or data.too_long=drop, which leaves it out"
                raise UserError(error.key, error.value, allowed) from error
            dropped.append(index)
            continue
        answered = answered and row.get("answer") is not None
    return replace(_without(whole, dropped), has_verifier=answered)


def _without(whole: Text, dropped: list[int]) -> Text:
    """Raises UserError where nothing is left."""
    if not dropped:
        return whole
    kept = np.delete(np.arange(len(whole)), dropped)
    if not len(kept):
        raise UserError(whole.key, whole.path, "data with at least one prompt that fits (data.max_length)")
    log.warning("%s: %d of %d rows are left out, whose prompts do not fit", whole.path, len(dropped), len(whole))
    chosen = records.ChosenRecords(whole.rows, kept.tolist())
    return replace(whole, rows=chosen, size=len(kept), split=f"{len(kept)} of {len(whole)} rows, those that fit")


def _check_row(row: Mapping[str, Any], origin: Origin) -> int:
    """Bytes of the prompt. Raises UserError for missing keys and wrong types."""
    answer = row.get("answer")
    if answer is not None and not isinstance(answer, str | int | float):
        raise origin.error(f"`answer` of type {type(answer).__name__}", "rows whose `answer` is text or a number")
    messages = row.get("messages")
    if messages is not None:
        return _check_messages(messages, origin)
    if row.get("prompt") is None:
        keys = ", ".join(sorted(row)) or "nothing"
        raise origin.error(f"a row of {keys}", "rows with `prompt` (and `completion`) or `messages`")
    if row.get("completion") is not None:
        _bytes(row["completion"], "completion", origin)
    return _bytes(row["prompt"], "prompt", origin)


def _fields(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a template may name; of a conversation the prompt is the turn that the first answer follows."""
    if row.get("messages") is None:
        return row
    return {**row, "prompt": row["messages"][asked(row["messages"])]["content"]}


def _size(row: Mapping[str, Any]) -> int:
    """Bytes of all the text of a checked row that both models read."""
    if row.get("messages") is not None:
        return sum(len(message["content"].encode()) for message in row["messages"])
    return len(row["prompt"].encode()) + len((row.get("completion") or "").encode())


def _completed(row: Mapping[str, Any]) -> bool:
    if row.get("messages") is not None:
        return bool(row["messages"][-1]["role"] == "assistant")
    return row.get("completion") is not None


def _check_messages(messages: Any, origin: Origin) -> int:
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise origin.error("`messages` of another form", "rows whose `messages` is a list of {role, content}")
    for message in messages:
        _bytes(message.get("role"), "role", origin)
    sizes = [_bytes(message.get("content"), "content", origin) for message in messages]
    if messages[0]["role"] == "assistant":
        raise origin.error("the assistant speaks first", "conversations that begin with another role")
    return sum(sizes[:-1] if messages[-1]["role"] == "assistant" else sizes)


def _bytes(value: Any, name: str, origin: Origin) -> int:
    if not isinstance(value, str):
        raise origin.error(f"`{name}` of type {type(value).__name__}", f"rows whose `{name}` is text")
    try:
        return len(value.encode())
    except UnicodeEncodeError as error:
        raise origin.error(f"`{name}` with half a surrogate pair", "text in valid Unicode") from error


def _present(message: Mapping[str, Any]) -> dict[str, Any]:
    """Arrow fills the keys a message lacks with None, which templates take for values."""
    return {key: value for key, value in message.items() if value is not None}


def normalised(text: str) -> str:
    """The text up to case, white space and Unicode form."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
