"""A run of several stages: a folder for each, what it starts from, and the records of the whole.

``stages/1-NAME``, ``stages/2-NAME``, … are run directories like any other. Beside them is what any run leaves:
``metrics.jsonl`` and ``samples.jsonl`` of all stages, ``source/`` of the first, ``model/`` of the last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill import checkpoint
from distill.callbacks import jsonl
from distill.callbacks.sparsity import ORIGIN
from distill.errors import UserError
from distill.rundir import STAGES

FINISHED, SAMPLES = "finished", "samples.jsonl"
OF_STAGE = "stage/"
"""What the names of metrics begin with, from the second stage on, that compare with the start of the stage."""
FROM_START = ("sparsity", "update", "geometry/")
SUMS = ("time", "tokens")
"""Metrics that count from the beginning of a run."""


@dataclass(frozen=True)
class Stage:
    """One run of the chain; ``before`` is the number of optimizer steps of the stages before it."""

    name: str
    folder: Path
    config: dict[str, Any]
    before: int

    @property
    def steps(self) -> int:
        return int(self.config["trainer"]["max_steps"])

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: trained, exported, and its report written."""
        return (self.folder / FINISHED).is_file()

    @property
    def exported(self) -> bool:
        """Whether all its steps were taken and its student is there, without a checkpoint to go on from; its card and
        its report may be missing."""
        steps = [record["step"] for record in _lines(self.folder / jsonl.FILE)]
        whole = (self.folder / "model").is_dir() and max(steps, default=0) == self.steps
        return whole and checkpoint.latest(self.folder) is None

    def finish(self) -> None:
        (self.folder / FINISHED).touch()


def link(configs: Mapping[str, dict[str, Any]], run_dir: Path, resume: str | None) -> list[Stage]:
    """The stages in their order of running; each but the first is told whose student it goes on with."""
    found, before = list[Stage](), 0
    for number, (name, given) in enumerate(configs.items(), start=1):
        config = given | {"resume": resume}
        if found:
            config["student"] = given["student"] | {
                **dict.fromkeys(("config", "tokenizer", "revision", "layers")),
                "path": str(found[-1].folder / "model"),
                "new_head": False,
            }
            measured = config["callbacks"]["sparsity"]
            if measured is not None:
                measured = measured | {"origin": measured["origin"] or str(run_dir / "source")}
            config["callbacks"] = config["callbacks"] | {"sparsity": measured}
        found.append(Stage(name, run_dir / STAGES / f"{number}-{name}", config, before))
        before += found[-1].steps
    return found


def refuse_overwriting(run_dir: Path, stages: Sequence[Stage], resume: str | None) -> None:
    """A fresh run needs an empty directory, a resumed one that of the same stages in the same order.

    Raises:
        UserError: another run's records would be overwritten.
    """
    there = sorted(path.name for path in (run_dir / STAGES).glob("*"))
    alone = not there and ((run_dir / jsonl.FILE).exists() or (run_dir / "checkpoints").exists())
    if resume is None and (there or alone):
        raise UserError("hydra.run.dir", str(run_dir), "a new folder (or pass resume=auto to continue the run in it)")
    if alone:
        raise UserError("hydra.run.dir", str(run_dir), "a new folder: the run in it has no stages")
    planned = [stage.folder.name for stage in stages]
    if there != planned[: len(there)]:
        raise UserError("stages", planned, f"{', '.join(there)}, …: the stages that {run_dir} was begun with")


def gather(run_dir: Path, stages: Sequence[Stage]) -> None:
    """Writes the records of the whole from those of its stages."""
    for name in (jsonl.FILE, SAMPLES):
        partial = run_dir / f"{name}.tmp"
        with partial.open("w", encoding="utf-8") as file:
            for stage in stages:
                sums = _sums(stages[: stages.index(stage)])
                for record in _lines(stage.folder / name):
                    file.write(json.dumps(of_whole(record, stage, sums), ensure_ascii=name == jsonl.FILE) + "\n")
        partial.replace(run_dir / name)


def of_whole(record: Mapping[str, Any], stage: Stage, sums: Mapping[str, float]) -> dict[str, Any]:
    """A record of a stage as one of the whole run: steps, time and tokens go on from the stage before (``sums``).

    What compares with θ₀ compares with that of the first stage, and what a later stage says of its own is under
    ``stage/``.
    """
    found = {"step": record["step"] + stage.before, "stage": stage.name}
    for key, value in record.items():
        if key.startswith(ORIGIN):
            found[key.removeprefix(ORIGIN)] = value
        elif stage.before and key.startswith(FROM_START) and "_since_last/" not in key:
            found[f"{OF_STAGE}{key}"] = value
        elif key != "step":
            found[key] = value + sums[key] if key in sums else value
    return found


class WholeLogger(jsonl.JsonlLogger):
    """Appends a stage's records to those of the whole run, while it runs."""

    def __init__(self, run_dir: Path, stages: Sequence[Stage]) -> None:
        super().__init__(run_dir)
        self.stage, self.sums = stages[-1], _sums(stages[:-1])

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        record = of_whole({"step": step, **metrics}, self.stage, self.sums)
        super().log_metrics({key: value for key, value in record.items() if key != "step"}, record["step"])


def adopt(folder: Path, into: Path) -> None:
    """Shows a stage's folder under another name: the same files where the file system can, else copies."""
    partial = into.with_name(f".{into.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(folder, partial, copy_function=_link)
    shutil.rmtree(into, ignore_errors=True)
    partial.rename(into)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _sums(stages: Sequence[Stage]) -> dict[str, float]:
    found = dict.fromkeys(SUMS, 0.0)
    for stage in stages:
        last: dict[str, Any] = {}
        for record in _lines(stage.folder / jsonl.FILE):
            last |= record
        for key in SUMS:
            found[key] += last.get(key, 0.0)
    return found


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    """The records of a file, but for a last one that is cut off."""
    if not path.exists():
        return
    # Not splitlines: a sample's text may hold U+2028 or U+0085.
    for line in path.read_bytes().split(b"\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue
