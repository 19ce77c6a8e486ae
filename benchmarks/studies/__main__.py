"""Plays one study and prints its tables: ``python -m benchmarks.studies NAME FOLDER [--seeds 0,1,2,3,4] [--jobs 2]``.

FOLDER keeps the runs (a second call goes on, and only prints once all are there), ``result.md`` and pictures.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from benchmarks.studies import harness, picture

SHARED = ("addition", "harness", "online", "picture")
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
    runs = harness.play(study, folder, given.seeds, given.jobs)
    texts = []
    for look in study.looks:
        results = harness.measure(look, runs)
        texts.append(harness.tell(study, look, results))
        picture.draw(look, results, folder / f"{harness.slug(look.what)}.png")
    (folder / "result.md").write_text("\n".join(texts), encoding="utf-8")
    print("\n".join(texts))


if __name__ == "__main__":
    main()
