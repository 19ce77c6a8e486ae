"""``metrics.jsonl``: one JSON object per log, on disk before the step is over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

FILE = "metrics.jsonl"


class JsonlLogger(Logger):
    """Appends ``{"step": …, "time": …, key: value, …}`` to ``metrics.jsonl`` in ``folder``."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / FILE

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return "0"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The resolved configuration is in ``config.yaml``."""


def truncate(path: Path, last_step: int) -> None:
    """Drops the records after ``last_step`` and a torn last line, so that a resumed run repeats none of them."""
    if not path.exists():
        return
    kept = []
    # Not splitlines: a sample's text may hold U+2028 or U+0085.
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            # Torn in the middle of a character, or of anything else.
            continue
        if record["step"] <= last_step:
            kept.append(line + b"\n")
    partial = path.with_suffix(".tmp")
    partial.write_bytes(b"".join(kept))
    partial.replace(path)
