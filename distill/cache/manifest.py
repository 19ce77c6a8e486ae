"""What a cache says of itself: where every number in it is from, how it is stored, and which shards are there."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from distill.errors import UserError

NAME, FORMAT = "manifest.json", 2
"""Format 1 had no seals in its shards."""


@dataclass(frozen=True)
class Provenance:
    """What determines the content of a cache; two that differ in any of it are different caches.

    ``prompt`` is what the teacher read in place of each sample's prompt (a template; None for the sample's own),
    ``weights`` its fingerprint (``analysis.fingerprint``), ``tokenizer`` that of the token ids, ``template`` the
    SHA-256 of the chat template (None without one), ``data`` the fingerprint of the training rows, ``encoding`` that of
    what else makes tokens of them, ``rows`` how many of them are cached, ``part`` which, and ``ids`` the SHA-256 of
    their numbers. ``temperature`` divided the logits. ``k`` tokens are kept, ``draws`` are drawn from the others by
    ``seed``; or ``states`` are kept instead. ``dtype`` is that of the teacher, ``stored`` that of the log-probabilities
    or states in the files, ``shard_rows`` the samples in each.
    """

    model: str
    revision: str | None
    prompt: str | None
    weights: str
    dtype: str
    tokenizer: str
    template: str | None
    vocab_size: int
    data: str
    encoding: str
    rows: int
    part: str
    ids: str
    temperature: float
    k: int
    draws: int
    seed: int
    states: bool
    stored: str
    shard_rows: int

    def digest(self) -> str:
        """SHA-256 (hex) of all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def difference(self, other: Provenance) -> str | None:
        """The first field in which ``other`` differs, with both values."""
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if ours != theirs:
                return f"{field.name} is {_short(ours)} there, {_short(theirs)} here"
        return None


@dataclass(frozen=True)
class Shard:
    """One file of the cache: its samples, target positions, and what it takes on disk."""

    rows: int
    positions: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """``shards`` by file name, in order; empty while the cache is not complete. ``version`` wrote the cache, ``head``
    is the SHA-256 of the output head beside hidden states, None without them."""

    version: str
    provenance: Provenance
    shards: Mapping[str, Shard]
    head: str | None = None

    @property
    def complete(self) -> bool:
        return bool(self.shards)

    @property
    def positions(self) -> int:
        return sum(shard.positions for shard in self.shards.values())

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards.values())


def write(folder: Path, manifest: Manifest) -> None:
    """At once or not at all."""
    text = json.dumps({"format": FORMAT, "complete": manifest.complete, **asdict(manifest)}, indent=2)
    draft = drafted(folder / NAME)
    draft.write_text(text + "\n", encoding="utf-8")
    try:
        draft.replace(folder / NAME)
    except FileNotFoundError:
        # Another process with the same words has finished the cache, and cleared drafts away.
        if not (folder / NAME).exists():
            raise


def drafted(path: Path) -> Path:
    """A name beside ``path`` that no other process, on whatever machine, writes to: what is there is hidden."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def drafts(folder: Path, names: Collection[str]) -> Iterator[Path]:
    """What processes began to write in ``folder`` under these names and have not finished."""
    found = folder.glob(f".*.{'[0-9a-f]' * 32}")
    return (path for path in found if path.stem[1:] in names)


def read(folder: Path, key: str) -> Manifest:
    """Raises UserError, named ``key``, where there is no cache, or one of another format."""
    allowed = "a folder that `distill cache` wrote"
    try:
        content: dict[str, Any] = json.loads((folder / NAME).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            again = f"this one is in {content['format']}: remove it, or choose another, and write it again"
            raise UserError(key, str(folder), f"{allowed} in format {FORMAT} ({again})")
        shards = {name: Shard(**shard) for name, shard in content["shards"].items()}
        return Manifest(content["version"], Provenance(**content["provenance"]), shards, content["head"])
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = "there is none" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
        raise UserError(key, str(folder), f"{allowed} ({NAME}: {reason})") from error


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else repr(value)
