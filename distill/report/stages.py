"""The stages of a run: what each took and did by itself, for the page and the card of the whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill.report.collect import CONFIG, read
from distill.report.summary import Summary, summarise

FOLDER = "stages"


@dataclass(frozen=True)
class Row:
    """A stage: its name, the folder of its run relative to the whole one's, and what that run achieved."""

    name: str
    folder: str
    summary: Summary


def table(run_dir: Path) -> list[Row]:
    """The stages that have begun, in their order of running; none of a run that has no stages."""
    begun = sorted((run_dir / FOLDER).glob(f"*/{CONFIG}"), key=lambda path: int(path.parent.name.split("-")[0]))
    return [
        Row(path.parent.name.partition("-")[2], f"{FOLDER}/{path.parent.name}", summarise(read(path.parent)))
        for path in begun
    ]
