"""Tokenizers: loading, the ids that end a sequence, and identity by content."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from distill.errors import UserError

_SPECIAL = ("bos_token_id", "eos_token_id", "unk_token_id")
"""Ids whose meaning two models must share. The padding id is not among them: no loss or mask ever looks at it."""


def load(location: Path | str, *, key: str, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer in a local folder or of a hub id, chat template included; ``options`` go to ``from_pretrained``.

    Raises:
        UserError: named ``key``, when there is no tokenizer.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(location, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(key, str(location), f"a folder or hub id with a tokenizer ({one_line(error)})") from error
    if not tokenizer.get_vocab():
        raise UserError(key, str(location), "a folder or hub id with a tokenizer (this one has no tokens)")
    return tokenizer


def one_line(error: BaseException) -> str:
    """What an exception of another library says, in one line short enough to quote."""
    return textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" …").rstrip(".")


def vocab_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows of an output embedding the tokenizer uses: its largest id + 1, which is ``len(tokenizer)`` without gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def eos_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> frozenset[int]:
    """Every id that ends a sequence: the tokenizer's and those of the model's configuration and generation config.

    Chat models have two or more (``<|im_end|>`` after a turn, ``<|endoftext|>`` after a document).
    """
    ids: set[int] = set()
    generation = getattr(model, "generation_config", None)
    for owner in (tokenizer, model.config.get_text_config(), generation):
        found = getattr(owner, "eos_token_id", None)
        ids.update(found if isinstance(found, Iterable) else [] if found is None else [found])
    return frozenset(id_ for id_ in ids if 0 <= id_ < vocab_size(tokenizer))


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (hex) of the mapping from token to id, added tokens included, and of the special ids."""
    content = [sorted(tokenizer.get_vocab().items()), [getattr(tokenizer, name) for name in _SPECIAL]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """SHA-256 (hex) of the chat template, None without one."""
    template = tokenizer.chat_template
    return None if template is None else hashlib.sha256(json.dumps(template).encode()).hexdigest()


def check_same(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    key: str = "teacher",
    student_name: str = "student",
) -> None:
    """Refuses a teacher whose ids mean other tokens than the student's, or those of a model of another name.

    Raises:
        UserError: naming the ``path`` under ``key`` and the first difference.
    """
    if fingerprint(student) != fingerprint(teacher):
        allowed = f"a model with the {student_name}'s tokenizer ({_difference(student, teacher, student_name)})"
        raise UserError(f"{key}.path", teacher.name_or_path, allowed)


def _difference(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, student_name: str) -> str:
    ours, theirs = ({id_: token for token, id_ in tokenizer.get_vocab().items()} for tokenizer in (student, teacher))
    if len(ours) != len(theirs):
        return f"the {student_name}'s has {len(ours)} tokens, the teacher's {len(theirs)}"
    for id_ in sorted(ours.keys() | theirs.keys()):
        if ours.get(id_) != theirs.get(id_):
            return f"id {id_} is {ours.get(id_)!r} for the {student_name}, {theirs.get(id_)!r} for the teacher"
    name = next(name for name in _SPECIAL if getattr(student, name) != getattr(teacher, name))
    return f"{name} is {getattr(student, name)} for the {student_name}, {getattr(teacher, name)} for the teacher"
