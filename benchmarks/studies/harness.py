"""Plays the runs of a study over seeds, several beside each other, and compares its arms pairwise by seed.

A run that has finished is not played again, so that a study goes on where it was stopped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
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
class Look:
    """One number of a run, by the name it is called; ``percent`` where it is a share."""

    what: str
    of: Measure
    percent: bool = True


ACCURACY = Look("accuracy", lambda run: run.last("eval/accuracy"))


@dataclass(frozen=True)
class Study:
    """``arms`` are words of ``distill train`` by name; ``pairs`` are compared as left − right, each with the claim it
    tests, in each of ``looks``. ``contrasts`` are differences of such differences, by what they ask: (pair, pair)."""

    question: str
    arms: Mapping[str, tuple[str, ...]]
    pairs: tuple[tuple[str, str, str], ...]
    before: tuple[Step, ...] = ()
    looks: tuple[Look, ...] = (ACCURACY,)
    contrasts: Mapping[str, tuple[tuple[str, str], tuple[str, str]]] = field(default_factory=dict)


Runs = dict[str, dict[int, RunRecord]]
Results = dict[str, dict[int, float]]


def play(study: Study, root: Path, seeds: Sequence[int], jobs: int) -> Runs:
    """The runs of every arm, by seed."""
    root.mkdir(parents=True, exist_ok=True)
    for step in study.before:
        if not (root / step.makes).exists():
            more = ["resume=auto"] if step.words[0] == "train" else []
            _command([word.format(root=root) for word in step.words] + more, root / f"{Path(step.makes).parts[0]}.log")
    folders = {(arm, seed): root / f"{slug(arm)}-{seed}" for seed in seeds for arm in study.arms}
    with ProcessPoolExecutor(jobs, get_context("spawn"), _alone) as pool:
        waiting = []
        for (arm, seed), folder in folders.items():
            if not (folder / "model" / "config.json").exists():
                words = [word.format(root=root, seed=seed) for word in study.arms[arm]]
                line = ["train", *QUIET, *words, f"seed={seed}", f"hydra.run.dir={folder}", "resume=auto"]
                waiting.append(pool.submit(_command, line, root / f"{folder.name}.log"))
        for done in waiting:
            done.result()
    return {arm: {seed: collect(folders[arm, seed]) for seed in seeds} for arm in study.arms}


def measure(look: Look, runs: Runs) -> Results:
    """What every arm measured, by seed; where a run never got there, it has no number."""
    values = {arm: {seed: look.of(run) for seed, run in of.items()} for arm, of in runs.items()}
    return {arm: {seed: value for seed, value in of.items() if value is not None} for arm, of in values.items()}


def tell(study: Study, look: Look, results: Results) -> str:
    """One number of the study as Markdown: a table of its arms, and one of its pairs."""
    scale, unit = (100, " %") if look.percent else (1, "")
    lines = [study.question, "", f"| arm | seeds | {look.what} | 95 % interval |", "|---|--:|--:|---|"]
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
    if study.contrasts:
        lines += ["", "| difference of differences | | 95 % interval | |", "|---|--:|---|---|"]
    for asked, (one, other) in study.contrasts.items():
        apart = paired(gains(results, one), gains(results, other))
        if apart is not None:
            lines.append(f"| {asked} | {scale * apart.mean:+.4g} | {_interval(apart, scale)} | {verdict(apart)} |")
    return "\n".join(lines) + "\n"


def gains(results: Results, pair: tuple[str, str]) -> dict[int, float]:
    """Left − right of every seed that has both."""
    left, right = (results[arm] for arm in pair)
    return {seed: left[seed] - right[seed] for seed in left.keys() & right.keys()}


def slug(name: str) -> str:
    """A name as part of a path that needs no quotes in Hydra's grammar."""
    return re.sub(r"[^\w.]+", "_", name, flags=re.ASCII)


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
