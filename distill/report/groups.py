"""Runs that differ only in their seed form a group: its name, its state, and what it measured over the seeds."""

from __future__ import annotations

import string
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from distill.report import settings
from distill.report.collect import RunRecord
from distill.report.gather import job_number
from distill.report.spread import Spread, spread
from distill.report.summary import Summary, summarise

RECENT = 120.0
"""Seconds after its last record in which an unfinished run may well be running."""
ENDED = ("failed", "interrupted")
"""What a sweep calls jobs that did not end well."""

Seed = int | str


@dataclass(frozen=True)
class Member:
    """One run of a comparison."""

    name: str
    record: RunRecord

    @cached_property
    def summary(self) -> Summary:
        return summarise(self.record)

    @property
    def seed(self) -> Seed:
        """The run's name where no seed is recorded: no other run's seed."""
        seed = self.record.setting("seed")
        typed = [word.removeprefix("seed=") for word in self.words if word.startswith("seed=")]
        if seed is None and typed and typed[-1].isdecimal():
            return int(typed[-1])
        return seed if isinstance(seed, int) else self.name

    @property
    def words(self) -> list[str]:
        """The overrides a sweep started the run with; empty outside one."""
        words = self.record.job.get("overrides")
        return [str(word) for word in words] if isinstance(words, list) else []

    @cached_property
    def complete(self) -> bool:
        """All steps done, and no sweep says that it failed before its model was exported."""
        exported = (self.record.path / "model").is_dir()
        return self.record.finished and (exported or self.record.job.get("status") not in ENDED)

    @property
    def error(self) -> str | None:
        """Why the run failed, where a sweep has kept that."""
        error = self.record.job.get("error")
        return None if self.complete or error is None else str(error).removeprefix("error: ")

    @property
    def tokens(self) -> float | None:
        return self.record.last("tokens")

    @property
    def tokens_per_second(self) -> float | None:
        """Over all of the training, evaluations included."""
        return self.tokens / self.record.seconds if self.tokens and self.record.seconds else None

    @property
    def status(self) -> str:
        """``complete``, or as much as the files tell of a run that is not."""
        record, said = self.record, self.record.job.get("status")
        if self.complete:
            return "complete"
        if said in ENDED or (said == "pending" and not record.metrics):
            return str(said)
        if not record.metrics:
            return "failed or starting, nothing recorded"
        if record.planned_steps is None:
            return "planned steps unknown"
        recent = record.written is not None and time.time() - record.written < RECENT
        return "running or just stopped" if recent else "stopped"

    @property
    def state(self) -> str:
        """The status and how far an incomplete run came."""
        where = f" at step {self.record.last_step}" if self.record.metrics and not self.complete else ""
        return self.status + where


QUANTITIES: dict[str, Callable[[Member], float | None]] = {
    "accuracy": lambda run: run.summary.after,
    "gap": lambda run: run.summary.gap,
    "kl": lambda run: run.summary.kl_after,
    "loss": lambda run: run.summary.loss,
    "sparsity": lambda run: run.summary.sparsity,
    "tokens": lambda run: run.tokens,
    "seconds": lambda run: run.record.seconds or None,
    "tokens_per_second": lambda run: run.tokens_per_second,
}


@dataclass(frozen=True)
class Group:
    """``letter`` marks the group's curves; ``index`` chooses their colour."""

    index: int
    letter: str
    name: str
    runs: list[Member]

    @property
    def complete(self) -> list[Member]:
        return [run for run in self.runs if run.complete]

    @property
    def recorded(self) -> bool:
        """Whether there is anything to draw."""
        return any(run.record.metrics for run in self.runs)

    @property
    def counted(self) -> list[Member]:
        """The runs behind the group's numbers: the complete ones, or all while none is."""
        return self.complete or self.runs

    @property
    def caveats(self) -> list[str]:
        """Why sparsities of the counted runs cannot be compared with published tables, where they cannot."""
        return [run.summary.caveat for run in self.counted if run.summary.caveat]

    @property
    def repeated(self) -> list[Seed]:
        """Seeds that more than one of the counted runs has."""
        seeds = [run.seed for run in self.counted]
        return [seed for seed in dict.fromkeys(seeds) if seeds.count(seed) > 1]

    @property
    def steps(self) -> str:
        """``300``, or ``12–40 of 300``."""
        steps = sorted({run.record.last_step for run in self.counted})
        reached = str(steps[0]) if len(steps) == 1 else f"{steps[0]}–{steps[-1]}"
        planned = self.runs[0].record.planned_steps
        return reached if planned is None or steps[0] >= planned else f"{reached} of {planned}"

    @property
    def states(self) -> list[str]:
        """``2 complete``, ``1 stopped at step 12``."""
        found = [run.state for run in self.runs]
        return [f"{found.count(state)} {state}" for state in dict.fromkeys(found)]

    def values(self, quantity: str) -> dict[Seed, float]:
        """Seed → value. Repeats of a seed are averaged, for they are not independent."""
        found: dict[Seed, list[float]] = {}
        for run in self.counted:
            value = QUANTITIES[quantity](run)
            if value is not None:
                found.setdefault(run.seed, []).append(value)
        return {seed: sum(values) / len(values) for seed, values in found.items()}

    def spread(self, quantity: str) -> Spread | None:
        return spread(list(self.values(quantity).values()))

    @property
    def n(self) -> int:
        """Different seeds behind the numbers."""
        return len({run.seed for run in self.counted})


def grouped(records: Sequence[RunRecord]) -> list[Group]:
    """Groups in the order of their first runs. A run whose settings are not recorded is grouped by the overrides its
    sweep started it with, or alone."""
    members = [Member(name, record) for name, record in zip(short_names(records), records, strict=True)]
    own = _own_words(members)
    found: dict[str, list[Member]] = {}
    for run in members:
        words = own[run.name] or f"alone {run.name}"
        key = settings.identity(run.record.config) if run.record.config else words
        found.setdefault(key, []).append(run)
    known = [runs[0].record.config for runs in found.values() if runs[0].record.config]
    names = iter(settings.names(known))
    groups = list[Group]()
    for index, runs in enumerate(found.values()):
        config = runs[0].record.config
        alone = f"recipe {settings.recipe(config) or 'unknown'}"
        unknown = f"{own[runs[0].name] or runs[0].name}, settings unknown"
        groups.append(Group(index, letters(index), next(names) or alone if config else unknown, runs))
    return groups


def _own_words(runs: Sequence[Member]) -> dict[str, str]:
    """Run → the overrides that not all jobs have, without those that make no other experiment."""
    same = tuple(f"{key}{end}" for key in (settings.SEED, *settings.NOT_COMPARED) for end in "=.")
    listed = [set(run.words) for run in runs if run.words]
    common = set.intersection(*listed) if len(listed) > 1 else set()
    return {
        run.name: " · ".join(word for word in run.words if word not in common and not word.startswith(same))
        for run in runs
    }


def letters(index: int) -> str:
    """A … Z, AA, AB, …"""
    alphabet = string.ascii_uppercase
    return (letters(index // 26 - 1) if index >= 26 else "") + alphabet[index % 26]


def short_names(records: Sequence[RunRecord]) -> list[str]:
    """Folder names, a sweep's jobs as ``job 3``, with as many parents as tell them apart."""
    paths = []
    for record in records:
        path = record.path.resolve()
        number = job_number(path)
        name = path.name if len(path.name) <= 40 else f"{path.name[:39]}…"
        paths.append((*path.parts[:-1], name if number is None else f"job {number}"))
    depth, deepest = 1, max(len(path) for path in paths)
    while depth < deepest and len({path[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path[-depth:]) for path in paths]
