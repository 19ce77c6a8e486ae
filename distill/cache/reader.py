"""Reads a cache by sample id, and refuses what was not cached or was cached for other tokens."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distill.cache import manifest
from distill.cache.compress import Kept
from distill.cache.shard import OpenShard, intact, seal, token_hash
from distill.errors import UserError
from distill.types import Row

OPEN_FILES = 64
OTHER = f"whose {manifest.NAME} is as it was written ({{}} is of another model, temperature, k, … than that says now)"


class Reader:
    """A complete cache. ``folder`` is opened once; samples are read from disk when they are asked for.

    Raises UserError, named ``key``, for anything that is not a complete, intact cache with the right tokens.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self.manifest = manifest.read(folder, key)
        if not self.manifest.complete:
            allowed = "a finished cache (`distill cache` with the same words goes on where it stopped)"
            raise UserError(key, str(folder), allowed)
        self.names = list(self.manifest.shards)
        self._shard = lru_cache(OPEN_FILES)(self._open)
        self._verified = set[int]()
        self._ids, self._places, self._hashes = self._index()
        distinct = len(np.unique(self._ids))
        if distinct != self.manifest.provenance.rows:
            self._refuse(f"with each of its {self.manifest.provenance.rows} samples once (it has {distinct})")

    def kept(self, row: Row) -> Kept:
        shard, place = self._find(row)
        return self._shard(shard).kept(place)

    def states(self, row: Row) -> Tensor:
        shard, place = self._find(row)
        return self._shard(shard).states(place)

    def check(self, sample_ids: Iterable[int]) -> None:
        """Refuses a cache that lacks one of the samples."""
        asked = np.fromiter(sample_ids, np.int64)
        missing = asked[~np.isin(asked, self._ids)]
        if len(missing):
            held = f"{self.manifest.provenance.part} are cached"
            self._refuse(f"of every sample (it lacks number {missing[0]}; {held})")

    def verify(self, rows: Iterable[Row]) -> None:
        """Refuses a cache that has other tokens for one of the rows."""
        for row in rows:
            self._find(row)

    def _find(self, row: Row) -> tuple[int, int]:
        at = int(np.searchsorted(self._ids, row.sample_id))
        if at == len(self._ids) or self._ids[at] != row.sample_id:
            self.check([row.sample_id])
        shard, place = self._places[at].tolist()
        if self._hashes[at].tobytes() != token_hash(row):
            self._refuse(f"of the same tokens (sample {row.sample_id} has others: data, template or max_length)")
        return shard, place

    def _index(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
        """By increasing sample id: the ids ``[n]``, shard and place ``[n, 2]``, hashes of the tokens ``[n, bytes]``.

        Arrays, because dictionaries of as many samples as a large data set has would need gigabytes.
        """
        made = self.manifest.provenance.digest()
        ids, places, hashes = list[NDArray[np.int64]](), list[NDArray[np.int64]](), list[NDArray[np.uint8]]()
        for number, name in enumerate(self.names):
            try:
                with safe_open(self.folder / name, "pt") as file:
                    if seal(file)[0] != made:
                        self._refuse(OTHER.format(name))
                    ids.append(file.get_tensor("sample_ids").numpy())
                    hashes.append(file.get_tensor("hashes").numpy())
            except (OSError, SafetensorError) as error:
                raise self._damaged(name) from error
            count = len(ids[-1])
            places.append(np.stack([np.full(count, number), np.arange(count)], axis=1))
        order = np.argsort(np.concatenate(ids))
        return np.concatenate(ids)[order], np.concatenate(places)[order], np.concatenate(hashes)[order]

    def _open(self, number: int) -> OpenShard:
        name = self.names[number]
        # Once: a large cache has more files than are kept open.
        if number not in self._verified and not intact(self.folder / name, self.manifest.shards[name]):
            raise self._damaged(name)
        self._verified.add(number)
        return OpenShard(self.folder / name)

    def _damaged(self, name: str) -> UserError:
        allowed = f"a cache whose files are as they were written ({name} is not: run `distill cache` again)"
        return UserError(self.key, str(self.folder), allowed)

    def _refuse(self, what: str) -> None:
        raise UserError(self.key, str(self.folder), f"a cache {what}")
