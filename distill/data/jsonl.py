"""JSON Lines, read so that a broken line is named with its file and number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.errors import UserError

ALLOWED = "lines of one JSON object each, in UTF-8"


class JsonLines:
    """Rows of one file, kept as raw lines and parsed again on access: as small in memory as on disk.

    Blank lines are skipped, CRLF and a byte order mark are accepted, and U+2028 does not end a line. Raises UserError
    for the first line that is not a JSON object in UTF-8.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self._lines: list[bytes] = []
        self._numbers: list[int] = []
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                content = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
                if content:
                    _check(content, key, f"{path}, line {number}")
                    self._lines.append(content)
                    self._numbers.append(number)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = json.loads(self._lines[index])
        return row

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(json.loads, self._lines)

    def place(self, index: int) -> str:
        return f"{self.path}, line {self._numbers[index]}"


def _check(line: bytes, key: str, place: str) -> None:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(key, f"{place}: {error}", ALLOWED) from error
    if not isinstance(row, dict):
        raise UserError(key, f"{place}: a {type(row).__name__}", ALLOWED)
