"""Rows from whatever ``data.path`` names: JSON Lines, Parquet, a folder of either, or one saved by ``datasets``."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distill.data.jsonl import JsonLines
from distill.errors import UserError

FORMATS = "an existing .jsonl or .parquet file, a folder of them, or a folder saved by `datasets`"


class Records(Protocol):
    """Raw rows; ``place`` names the file and the line or row, counted from 1."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def place(self, index: int) -> str: ...


class TableRecords:
    """Rows of an Arrow table, converted one at a time."""

    def __init__(self, table: pa.Table, path: Path) -> None:
        self.table, self.path = table, path

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self.table.slice(index, 1).to_pylist()[0]
        return row

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.table.to_batches(max_chunksize=1024):
            yield from batch.to_pylist()

    def place(self, index: int) -> str:
        return f"{self.path}, row {index + 1}"


class JoinedRecords:
    """Several files one after another."""

    def __init__(self, parts: list[Records]) -> None:
        self.parts = parts
        self.ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, local = self._locate(index)
        return part[local]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return chain.from_iterable(self.parts)

    def place(self, index: int) -> str:
        part, local = self._locate(index)
        return part.place(local)

    def _locate(self, index: int) -> tuple[Records, int]:
        number = bisect_right(self.ends, index)
        return self.parts[number], index - (self.ends[number - 1] if number else 0)


class ChosenRecords:
    """Some rows of others, which keep their places."""

    def __init__(self, records: Records, indices: Sequence[int]) -> None:
        self.records, self.indices = records, np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.records[int(self.indices[index])]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        kept = np.zeros(len(self.records), dtype=bool)
        kept[self.indices] = True
        return (row for row, chosen in zip(self.records, kept, strict=True) if chosen)

    def place(self, index: int) -> str:
        return self.records.place(int(self.indices[index]))


def read(path: str | None, key: str) -> Records:
    """Reads all rows of a path. ``key`` is the configuration key that errors name.

    Raises UserError for a missing or unreadable path, an unknown format, a broken line, or no rows at all.
    """
    if path is None:
        raise UserError(key, path, FORMATS)
    place = Path(path).expanduser()
    try:
        records = _read_folder(place, key) if place.is_dir() else _read_file(place, key)
    except (OSError, pa.ArrowException) as error:
        detail = "" if isinstance(error, FileNotFoundError) else f": {str(error).splitlines()[0]}"
        raise UserError(key, f"{path}{detail}", FORMATS) from error
    if len(records) == 0:
        raise UserError(key, path, "data with at least one row")
    return records


def _read_file(path: Path, key: str) -> Records:
    if path.suffix in (".jsonl", ".json"):
        return JsonLines(path, key)
    if path.suffix == ".parquet":
        return TableRecords(pq.read_table(path), path)
    raise UserError(key, str(path), FORMATS)


def _read_folder(path: Path, key: str) -> Records:
    if (path / "dataset_dict.json").is_file():
        raise UserError(key, str(path), f"one split of the saved dataset, such as {str(path / 'train')!r}")
    if (path / "dataset_info.json").is_file():
        from datasets import load_from_disk

        return TableRecords(load_from_disk(str(path)).data.table, path)
    files = sorted(file for file in path.iterdir() if file.suffix in (".jsonl", ".parquet"))
    if not files:
        raise UserError(key, str(path), FORMATS)
    return JoinedRecords([_read_file(file, key) for file in files])
