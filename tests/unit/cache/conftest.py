"""A cache of a few rows under a made-up teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.cache import manifest, shard
from distill.cache.compress import compress
from distill.cache.manifest import Manifest, Provenance
from distill.cache.shard import Entry, token_hash
from distill.types import Row

V, K = 30, 5
LENGTHS = (4, 7, 3, 9, 5)
MADE = Provenance(
    *("m", None, None, "w", "float32", "t", None, V, "d", "e", 5, "all 5", "i"), *(1.0, K, 2, 0, False, "float32", 2)
)


def rows() -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for number, length in enumerate(LENGTHS):
        ids = torch.randint(V, (length,), generator=generator)
        found.append(Row(10 + number, ids, torch.arange(length) >= length // 2))
    return found


def entries() -> list[Entry]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for row in rows():
        targets = row.input_ids[row.target_mask]
        log_probs = torch.log_softmax(torch.randn(len(targets), V, generator=generator), -1)
        uniforms = torch.rand(len(targets), generator=generator, dtype=torch.float64)
        found.append(Entry(row.sample_id, token_hash(row), compress(log_probs, targets, K, 2, uniforms), None))
    return found


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Five rows in shards of two."""
    folder = tmp_path / "cache"
    folder.mkdir()
    written = entries()
    for number, start in enumerate(range(0, 5, 2)):
        shard.save(folder / shard.name(number), written[start : start + 2], MADE)
    shards = {path.name: shard.describe(path) for path in sorted(folder.glob("*.safetensors"))}
    manifest.write(folder, Manifest("0", MADE, shards))
    return folder
