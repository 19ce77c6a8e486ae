"""One record per sequence that the teacher wrote: the row it makes, and whether and why it is dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from distill.data.encode import Encoder, Origin, answering
from distill.data.text import normalised
from distill.errors import UserError
from distill.models import CausalLM
from distill.rollouts.decode import Completion

Row = dict[str, Any]
ORIGIN = Origin("label", "a row that was written")


def text_of(lm: CausalLM, completion: Completion) -> str:
    """What the teacher wrote, without special tokens such as the one that ends it."""
    return str(lm.tokenizer.decode(list(completion.ids), skip_special_tokens=True))


def asked(row: Mapping[str, Any]) -> Row:
    """A row without its completion, or its last turn if that is the assistant's."""
    found = {key: value for key, value in row.items() if key != "completion"}
    if "messages" in found and found["messages"][-1]["role"] == "assistant":
        found["messages"] = found["messages"][:-1]
    return found


def answered(row: Mapping[str, Any], text: str) -> Row:
    """A row of :func:`asked` with ``text`` for its answer."""
    if "messages" in row:
        return {**row, "messages": [*row["messages"], answering(text)]}
    return {"prompt": row["prompt"], "completion": text, **row}


def key(row: Mapping[str, Any], whole: bool) -> bytes:
    """What rows that say the same have in common: their prompts, and their completions too if ``whole``, up to case,
    white space and Unicode form. System turns do not count."""
    if "messages" in row:
        turns = [message for message in row["messages"] if message["role"] != "system"]
        texts = [str(message["content"]) for message in (turns if whole else asked({"messages": turns})["messages"])]
    else:
        texts = [row["prompt"], *([row.get("completion") or ""] if whole else [])]
    return hashlib.blake2b("\0".join(map(normalised, texts)).encode(), digest_size=16).digest()


def record(row: Row, dropped: str | None, tokens: int, exact: bool = False, verified: bool = False) -> Row:
    """``tokens``: how many were drawn. ``exact``: the row reads as these. ``verified``: the answer was checked."""
    return {"dropped": dropped, "tokens": tokens, "exact": exact, "verified": verified, "row": row}


def read_again(row: Mapping[str, Any], encoder: Encoder) -> Sequence[int] | None:
    """The tokens that training on the row sees; None if it cannot be read."""
    try:
        if "messages" in row:
            return encoder.messages(row["messages"], ORIGIN).input_ids
        return encoder.text(row["prompt"], row["completion"], ORIGIN).input_ids
    except UserError:
        return None


def ending(completion: Completion, text: str) -> str | None:
    """Why nothing can be learnt from a completion: no text in it, or no end of it."""
    if not completion.stopped:
        return "unfinished"
    return None if text.strip() else "empty"
