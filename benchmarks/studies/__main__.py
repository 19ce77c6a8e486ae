"""Plays one study and prints its tables: ``python -m benchmarks.studies NAME FOLDER [--seeds 0,1,2,3,4] [--jobs 2]``.

FOLDER keeps the runs (a second call goes on, and only prints once all are there), ``result.md`` and ``result.png``.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from benchmarks.studies import harness, picture

SHARED = ("addition", "harness", "picture")
NAMES = [path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem not in SHARED]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(NAMES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=list(range(5)))
    parser.add_argument("--jobs", type=int, default=2, help="runs beside each other, one thread each")
    given = parser.parse_args()
    study = importlib.import_module(f"benchmarks.studies.{given.name}").STUDY
    folder = given.folder.absolute()
    results = harness.play(study, folder, given.seeds, given.jobs)
    text = harness.tell(study, results)
    (folder / "result.md").write_text(text, encoding="utf-8")
    picture.draw(study, results, folder / "result.png")
    print(text)


if __name__ == "__main__":
    main()
