"""A cache gives back what was written, row by row, and refuses everything that is not it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from distill.cache import manifest, parquet, reader
from distill.cache.compress import FIELDS
from distill.cache.manifest import Manifest
from distill.cache.reader import Reader
from distill.cache.shard import token_hash
from distill.errors import UserError
from tests.unit.cache.conftest import LENGTHS, MADE, entries, rows


def test_every_row_comes_back_in_any_order(cache: Path) -> None:
    found = Reader(cache, "teacher.cache")
    for row, entry in reversed(list(zip(rows(), entries(), strict=True))):
        kept = found.kept(row)
        for name in FIELDS:
            assert torch.equal(getattr(kept, name), getattr(entry.kept, name)), name
    assert found.manifest.positions == sum(length - length // 2 for length in LENGTHS)


@pytest.mark.parametrize(
    "change",
    [
        lambda row: replace(row, input_ids=row.input_ids.flip(0)),
        lambda row: replace(row, input_ids=row.input_ids[:-1], target_mask=row.target_mask[:-1]),
        lambda row: replace(row, target_mask=~row.target_mask),
    ],
)
def test_other_tokens_are_refused(cache: Path, change) -> None:
    with pytest.raises(UserError, match=r"`teacher.cache` must be a cache of the same tokens \(sample 11 has others"):
        Reader(cache, "teacher.cache").kept(change(rows()[1]))


def test_samples_that_were_not_cached_are_refused(cache: Path) -> None:
    found = Reader(cache, "teacher.cache")
    found.check([10, 14])
    with pytest.raises(UserError, match=r"every sample \(it lacks number 15; all 5 are cached\)"):
        found.check([10, 15])
    with pytest.raises(UserError, match="lacks number 99"):
        found.kept(replace(rows()[0], sample_id=99))


def test_rows_that_are_there_twice_are_refused(cache: Path) -> None:
    (cache / "shard-00002.safetensors").write_bytes((cache / "shard-00000.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"each of its 5 samples once \(it has 4\)"):
        Reader(cache, "teacher.cache")


def test_a_file_is_hashed_once_however_many_there_are(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(reader, "OPEN_FILES", 1)
    monkeypatch.setattr(reader, "intact", lambda path, expected: not hashed.append(path))
    found = Reader(cache, "teacher.cache")
    for row in [*rows(), *rows(), *rows()[::-1]]:
        found.kept(row)
    assert len(hashed) == 3


def test_an_unfinished_cache_is_refused(cache: Path) -> None:
    manifest.write(cache, Manifest("0", MADE, {}))
    with pytest.raises(UserError, match="a finished cache"):
        Reader(cache, "teacher.cache")


@pytest.mark.parametrize("edit", [{"k": 6}, {"temperature": 2.0}, {"template": "z" * 64}, {"states": True}])
def test_a_manifest_that_was_edited_is_not_believed(cache: Path, edit: dict[str, Any]) -> None:
    content = json.loads((cache / manifest.NAME).read_text())
    content["provenance"] |= edit
    (cache / manifest.NAME).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"whose manifest.json is as it was written \(shard-00000.safetensors is of an"):
        Reader(cache, "teacher.cache")


@pytest.mark.parametrize("damage", ["flip", "name", "cut", "remove"])
def test_a_damaged_file_is_refused(cache: Path, damage: str) -> None:
    path = cache / "shard-00001.safetensors"
    content = path.read_bytes()
    path.unlink()
    if damage != "remove":
        # A name in the header, and what only the digest tells.
        place = {"name": content.index(b'"ends"') + 1, "flip": len(content) - 1}.get(damage)
        flipped = content if place is None else content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        path.write_bytes(content[:50] if damage == "cut" else flipped)
    with pytest.raises(UserError, match=r"files are as they were written \(shard-00001.safetensors is not"):
        Reader(cache, "teacher.cache").kept(rows()[2])


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "there is none"), ("[]", "TypeError"), ("{", "JSONDecodeError"), ('{"format": 9}', "this one is in 9")],
)
def test_what_is_no_cache_is_refused(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / manifest.NAME).write_text(content)
    with pytest.raises(UserError, match=reason) as found:
        Reader(tmp_path, "teacher.cache")
    assert "\n" not in str(found.value)


def test_the_manifest_tells_the_first_difference() -> None:
    assert MADE.difference(MADE) is None
    assert MADE.difference(replace(MADE, k=6)) == "k is 5 there, 6 here"
    assert MADE.difference(replace(MADE, data="a" * 64)) == "data is 'd' there, aaaaaaaaaaaa… here"


def test_the_manifest_is_json_anybody_can_read(cache: Path) -> None:
    content = json.loads((cache / manifest.NAME).read_text())
    assert content["complete"] is True
    assert content["provenance"]["vocab_size"] == 30
    assert [content["shards"][name]["rows"] for name in sorted(content["shards"])] == [2, 2, 1]


def test_the_first_token_is_no_target_whatever_the_mask_says() -> None:
    row = rows()[0]
    first = row.target_mask.clone()
    first[0] = True
    assert token_hash(replace(row, target_mask=first)) == token_hash(row)


def test_parquet_has_a_line_per_target(cache: Path) -> None:
    parquet.export(cache, manifest.read(cache, "cache.out"))
    found = [line for path in sorted((cache / "parquet").iterdir()) for line in pq.read_table(path).to_pylist()]
    expected = [
        (entry.sample_id, place, entry.kept.take(torch.tensor([place])))
        for entry in entries()
        for place in range(len(entry.kept.tokens))
    ]
    for line, (sample, place, kept) in zip(found, expected, strict=True):
        assert (line["sample_id"], line["position"]) == (sample, place)
        assert (line["tokens"], line["drawn"]) == (kept.tokens[0].tolist(), kept.drawn[0].tolist())
        assert line["logprobs"] == kept.logprobs[0].tolist()
        assert (line["target_logprob"], line["log_rest"]) == (kept.target_logprobs.item(), kept.log_rest.item())
