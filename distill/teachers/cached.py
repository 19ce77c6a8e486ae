"""The cached teacher: what a model said about the completions of the data, read from files instead of asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from distill.cache import HEAD
from distill.cache.compress import FIELDS, Kept, expand
from distill.cache.reader import Reader
from distill.cache.shard import sha256
from distill.errors import UserError
from distill.models import tokenizers
from distill.models.head import LogitHead
from distill.types import Batch, Row, Signal

MODEL_DTYPE = "float32"
"""What ``teacher.dtype`` is when nobody has set it."""


class CachedTeacher:
    """Answers from the cache at ``spec["cache"]``, sample by sample; nothing of a model is loaded but, beside hidden
    states, its output head.

    Raises UserError, named ``teacher.…``, for a cache that is not complete, was made with another tokenizer or chat
    template than the student's ``tokenizer``, or of another model than ``spec`` names (where it names one).
    """

    judge = None
    max_positions = None

    def __init__(self, spec: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
        self.reader = Reader(Path(spec["cache"]).expanduser(), "teacher.cache")
        self.made = made = self.reader.manifest.provenance
        for name in ("path", "revision"):
            there = made.model if name == "path" else made.revision
            if spec[name] is not None and not _same(spec[name], there):
                raise UserError(f"teacher.{name}", spec[name], f"{there!r}, whose answers are cached, or null")
        if tokenizers.fingerprint(tokenizer) != made.tokenizer:
            self._refuse("of the student's tokenizer (this one was made with another)")
        if tokenizers.template_hash(tokenizer) != made.template:
            self._refuse("of the student's chat template (this one was made with another)")
        if spec["dtype"] not in (MODEL_DTYPE, made.dtype):
            raise UserError("teacher.dtype", spec["dtype"], f"{made.dtype!r}, as when the answers were cached")
        self.head = _head(self.reader) if made.states else None

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        return []

    def check(self, data: str, sample_ids: Sequence[int], rows: Iterable[Row]) -> None:
        """Refuses a cache of other training rows (by their fingerprint), one that lacks some of them, or one that has
        other tokens for some of ``rows``, which need not be all: each is looked at again when it is trained on."""
        if data != self.made.data:
            self._refuse("of the same training data (this one's was another, or has changed since)")
        self.reader.check(sample_ids)
        self.reader.verify(rows)

    def signal(self, batch: Batch) -> Signal:
        """The cached states ``[N, H]`` with the teacher's head; or the number of each target, ``[N]``, and a head that
        expands what is cached of it to log-probabilities times the cached temperature, which the loss divides by."""
        rows = _rows(batch)
        if self.head is not None:
            states = torch.cat([self.reader.states(row) for row in rows])
            return Signal(states.to(batch.input_ids.device), self.head)
        parts = [self.reader.kept(row) for row in rows]
        kept = Kept(*(torch.cat([getattr(part, field) for part in parts]) for field in FIELDS))
        kept, targets = kept.to(batch.input_ids.device), batch.targets

        def head(positions: Tensor) -> Tensor:
            found = expand(kept.take(positions), targets[positions], self.made.vocab_size)
            return found if self.made.temperature == 1 else found * self.made.temperature

        return Signal(torch.arange(len(targets), device=targets.device), head)

    def place(self, device: torch.device | str) -> CachedTeacher:
        if self.head is not None:
            self.head.module.to(device)
        return self

    def _refuse(self, what: str) -> None:
        raise UserError("teacher.cache", str(self.reader.folder), f"a cache {what}")


def _rows(batch: Batch) -> list[Row]:
    ids, masks, lengths = batch.input_ids.cpu(), batch.target_mask.cpu(), batch.attention_mask.sum(-1).tolist()
    samples = zip(batch.sample_ids.tolist(), lengths, strict=True)
    return [Row(id_, ids[b, :length], masks[b, :length]) for b, (id_, length) in enumerate(samples)]


def _head(reader: Reader) -> LogitHead:
    """The head that was written beside the states, in the dtype it has in the teacher."""
    path = reader.folder / HEAD
    try:
        if sha256(path) != reader.manifest.head:
            raise ValueError("other bytes")
        stored = load_file(path)
        weight = stored["weight"]
        module = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in stored, dtype=weight.dtype)
        module.load_state_dict({name: stored[name] for name in ("weight", "bias") if name in stored})
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise UserError("teacher.cache", str(reader.folder), f"a cache with an intact {path.name}") from error
    module.requires_grad_(False)
    cap = float(stored["cap"])
    return LogitHead(module, reader.manifest.provenance.vocab_size, float(stored["scale"]), None if cap == 0 else cap)


def _same(given: str, recorded: str | None) -> bool:
    """Whether two names are of one model: equal, or the same place on this machine."""
    return given == recorded or (recorded is not None and Path(given).absolute() == Path(recorded).absolute())
