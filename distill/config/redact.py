"""Keeps secrets out of everything a run writes: ``config.yaml``, ``environment.json``, logs, W&B, error messages.

A secret is a value under a key named like one (``hf_token``), the value of an environment variable named like one, or
text in a well-known form (``hf_…``, ``sk-…``, ``https://user:password@host``).
"""

from __future__ import annotations

import logging
import os
import re
from functools import lru_cache
from typing import Any

MASK = "***"
MIN_LENGTH = 8
"""Shorter environment values are left alone: masking every "1" or "true" would garble the text."""

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SECRET_NAME = re.compile(r"secret|password|passwd|credential|api_?key|access_?key|private_?key")
# "token" alone is also a word of the trade: tokenizer, max_new_tokens, eos_token and token_id hold no secret.
_TOKEN_NAME = re.compile(r"(?:^|_)token(?!_(?:id|ids|type|count)(?:_|$))(?:_|$)")
_SPECIAL_TOKEN = re.compile(r"(?:^|_)(?:bos|eos|pad|unk|sep|cls|mask|image|audio|video|stop|start|end|decoder)_token$")
_KNOWN = re.compile(
    r"""
    (?<![A-Za-z0-9])(?:
        hf_[A-Za-z0-9]{16,} | gh[pousr]_[A-Za-z0-9]{16,} | github_pat_\w{20,} | glpat-[\w-]{16,}
        | sk-[\w-]{16,} | xox[abposr]-[\w-]{10,} | AKIA[A-Z0-9]{16} | wandb_v\d_\w{16,}
    )
    | (?<=://)(?!git@)[^/\s@'"]+(?=@)
    | (?<=[Bb]earer\ )\S+
    """,
    re.VERBOSE,
)
_WANDB_KEY = re.compile(r"((?:wandb|api[ _-]?key)[^\n]{0,40}?)\b[0-9a-f]{40}\b", re.IGNORECASE)
_ASSIGNMENT = re.compile(r"""([\w.-]+)(["']?\s*[=:]\s*)("[^"]*"|'[^']*'|[^\s,;}\])"']+)""")


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a key, or an environment variable, is named like a secret.

    >>> [is_secret_name(name) for name in ("HF_TOKEN", "wandb.api_key", "student.tokenizer", "max_new_tokens")]
    [True, True, False, False]
    """
    plain = re.sub(r"[-. ]", "_", _CAMEL.sub("_", name)).lower()
    return bool(_SECRET_NAME.search(plain) or (_TOKEN_NAME.search(plain) and not _SPECIAL_TOKEN.search(plain)))


def redact_text(text: str) -> str:
    """The text with every secret in it replaced by ``***``."""
    return _without(_environment(), text)


def _environment() -> list[str]:
    """Values of secret variables, longest first."""
    values = {value for name, value in os.environ.items() if len(value) >= MIN_LENGTH and is_secret_name(name)}
    return sorted(values, key=len, reverse=True)


def _without(values: list[str], text: str) -> str:
    for value in values:
        text = text.replace(value, MASK)
    text = _WANDB_KEY.sub(rf"\g<1>{MASK}", _KNOWN.sub(MASK, text))
    return _ASSIGNMENT.sub(_mask_assignment, text)


def redact(value: Any, key: str = "") -> Any:
    """A copy of nested dicts, lists and strings without secrets; ``key`` is the name the value goes by."""
    return _redact(_environment(), value, key)


def _redact(values: list[str], value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {_redact(values, name, ""): _redact(values, item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_redact(values, item, key) for item in value)
    if value is None or isinstance(value, bool) or value == "":
        return value
    if is_secret_name(key):
        return MASK
    return _without(values, value) if isinstance(value, str) else value


class RedactFilter(logging.Filter):
    """Put on a handler, masks the secrets in the message and traceback of every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact_text(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redact_text(record.exc_text)
        return True


def _mask_assignment(match: re.Match[str]) -> str:
    name, equals, _ = match.groups()
    return f"{name}{equals}{MASK}" if is_secret_name(name) else match.group()
