"""GGUF files: dequantised once to a safetensors folder in a cache, which every later start loads in a second."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from distill.errors import UserError
from distill.models import tokenizers

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """``$DISTILL_CACHE``, or ``~/.cache/distill``."""
    return Path(os.environ.get("DISTILL_CACHE") or Path.home() / ".cache" / "distill")


def dequantise(file: Path, folder: Path, dtype: str) -> None:
    """Writes ``file`` as a plain model of ``dtype`` with tokenizer and chat template to ``folder``."""
    # Without `dequantize` transformers keeps the quantised blocks, which can be neither trained nor saved.
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=getattr(torch, dtype),
    )
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    if model.config.eos_token_id is not None:
        # The tokenizer that transformers 5.17 makes ends sequences with their first token.
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    tokenizer.save_pretrained(folder)
    _drop_foreign_tokens(folder / "tokenizer.json")


def _drop_foreign_tokens(file: Path) -> None:
    """Removes added tokens that the GGUF file does not have.

    A byte-level tokenizer that transformers reads from GGUF gets an `<|endoftext|>`, also where no id is left for it.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    known = set(content["model"]["vocab"].values())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] in known]
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def convert(file: Path, dtype: str, *, key: str, writer: Callable[[Path, Path, str], None] = dequantise) -> Path:
    """The folder that holds ``file`` converted to ``dtype``; made by ``writer`` on the first call, cached afterwards.

    The cache key is the file's content and the dtype. A folder appears under its final name only when it is complete,
    and of several processes one converts while the others wait.

    Raises:
        UserError: named ``key``, when the file cannot be read or a package that reads it is missing.
    """
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    target = cache_folder() / "gguf" / f"{file.stem}-{digest[:16]}-{dtype}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            log.info("converting %s to %s, once", file, target)
            partial = Path(f"{target}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                writer(file, partial, dtype)
            except ImportError as error:
                raise UserError(key, str(file), "read with `pip install 'distill[real]'`") from error
            except (ValueError, LookupError, struct.error) as error:
                reason = tokenizers.one_line(error)
                raise UserError(key, str(file), f"a complete GGUF file of a known architecture ({reason})") from error
            partial.rename(target)
    return target
