"""Plays the runs of a study over seeds, several beside each other, and compares its arms pairwise by seed.

A run that has finished is not played again, so that a study goes on where it was stopped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from distill.report.collect import RunRecord, collect
from distill.report.spread import Spread, paired, spread, verdict

QUIET = ("callbacks.sparsity=null", "callbacks.checkpoint=null", "callbacks.rollouts=null", "logger.progress=off")
"""What the runs of a study leave out, unless its words say otherwise."""
Measure = Callable[[RunRecord], float | None]


@dataclass(frozen=True)
class Step:
    """One command before the runs: its words, and what is there once it is done. ``{root}`` is the study's folder."""

    words: tuple[str, ...]
    makes: str


@dataclass(frozen=True)
class Study:
    """``arms`` are words of ``distill train`` by name; ``pairs`` are compared as left − right, each with the claim it
    tests. ``measure`` is the number of a run that all is about, called ``what``."""

    question: str
    arms: Mapping[str, tuple[str, ...]]
    pairs: tuple[tuple[str, str, str], ...]
    measure: Measure
    what: str
    before: tuple[Step, ...] = ()
    percent: bool = True


Results = dict[str, dict[int, float]]


def play(study: Study, root: Path, seeds: Sequence[int], jobs: int) -> Results:
    """What every arm measured, by seed; an arm whose run never got there has no number for the seed."""
    root.mkdir(parents=True, exist_ok=True)
    for step in study.before:
        if not (root / step.makes).exists():
            _command([word.format(root=root) for word in step.words], root / f"{Path(step.makes).parts[0]}.log")
    folders = {(arm, seed): root / f"{slug(arm)}-{seed}" for seed in seeds for arm in study.arms}
    with ProcessPoolExecutor(jobs, get_context("spawn"), _alone) as pool:
        waiting = []
        for (arm, seed), folder in folders.items():
            if not (folder / "model" / "config.json").exists():
                words = [word.format(root=root, seed=seed) for word in study.arms[arm]]
                line = ["train", *QUIET, *words, f"seed={seed}", f"hydra.run.dir={folder}", "resume=auto"]
                waiting.append(pool.submit(_command, line, folder.with_suffix(".log")))
        for done in waiting:
            done.result()
    found: Results = {arm: {} for arm in study.arms}
    for (arm, seed), folder in folders.items():
        value = study.measure(collect(folder))
        if value is not None:
            found[arm][seed] = value
    return found


def tell(study: Study, results: Results) -> str:
    """The study as Markdown: a table of its arms, and one of its pairs."""
    scale, unit = (100, " %") if study.percent else (1, "")
    lines = [study.question, "", f"| arm | seeds | {study.what} | 95 % interval |", "|---|--:|--:|---|"]
    for arm, values in results.items():
        found = spread(list(values.values()))
        cells = ("–", "") if found is None else (f"{scale * found.mean:.4g}{unit}", _interval(found, scale))
        lines.append(f"| {arm} | {len(values)} | {cells[0]} | {cells[1]} |")
    lines += ["", "| claim | left − right | difference | 95 % interval | |", "|---|---|--:|---|---|"]
    for left, right, claim in study.pairs:
        apart = paired(results[left], results[right])
        if apart is not None:
            shown = f"{scale * apart.mean:+.4g} | {_interval(apart, scale)} | {verdict(apart)}"
            lines.append(f"| {claim} | {left} − {right} | {shown} |")
    return "\n".join(lines) + "\n"


def slug(name: str) -> str:
    """A name as part of a path that needs no quotes."""
    return re.sub(r"[^\w.]+", "_", name)


def last(key: str) -> Measure:
    """The last value of a metric."""
    return lambda run: run.last(key)


def steps_to(key: str, level: float) -> Measure:
    """The first step at which a metric has reached ``level``, None where it never does."""
    return lambda run: next((float(step) for step, value in run.series(key) if value >= level), None)


def _interval(found: Spread, scale: float) -> str:
    low, high = found.low, found.high
    return "" if low is None or high is None else f"{scale * low:.4g} … {scale * high:.4g}"


def _alone() -> None:
    """One thread per run: as many runs as cores are faster than runs of several threads, one after the other."""
    import torch

    torch.set_num_threads(1)


def _command(words: list[str], log: Path) -> None:
    from distill import cli

    with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        status = cli.main(words)
    if status != 0:
        raise RuntimeError(f"distill {' '.join(words)} ended with {status}: see {log}")


os.environ.setdefault("OMP_NUM_THREADS", "1")
