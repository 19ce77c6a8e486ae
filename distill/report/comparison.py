"""What a comparison of runs shows beside its curves: tables of groups, runs, differences and settings."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from distill.report import settings
from distill.report.collect import RunRecord
from distill.report.groups import Group, Member, Seed
from distill.report.spread import Spread, paired
from distill.report.summary import number, percent

ALL_PAIRS = 5
"""With more groups than this each is compared with the first one only."""
OBJECTIVE = ("objective.", "teacher.", "rollout.")
LOSS_NOTE = "The groups minimise different objectives: their losses are different quantities."
PAIRED = {
    "accuracy": "accuracy, points",
    "kl": "KL to the teacher, nats per token",
    "sparsity": "sparsity bf16, points",
}


@dataclass(frozen=True)
class Pair:
    """Differences left − right over the seeds both groups completed; quantity → spread."""

    left: Group
    right: Group
    seeds: list[Seed]
    differences: dict[str, Spread]


def pairs(groups: Sequence[Group]) -> list[Pair]:
    """Every pair of groups that share two complete seeds or more; the first group's only when there are many groups."""
    chosen = itertools.combinations([group for group in groups if group.complete], 2)
    found = []
    for left, right in chosen:
        if len(groups) > ALL_PAIRS and left is not groups[0]:
            continue
        values = {name: (left.values(name), right.values(name)) for name in PAIRED}
        spreads = {name: paired(*both) for name, both in values.items()}
        differences = {name: value for name, value in spreads.items() if value is not None}
        shared = {run.seed for run in right.complete}
        seeds = [seed for seed in dict.fromkeys(run.seed for run in left.complete) if seed in shared]
        if differences:
            found.append(Pair(left, right, seeds, differences))
    return found


def different_settings(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Key → value in each group, for the keys in which the groups differ."""
    known = [group for group in groups if group.runs[0].record.config]
    found = settings.differing([group.runs[0].record.config for group in known])
    places = {group.index: place for place, group in enumerate(known)}
    return {
        key: [values[places[group.index]] if group.index in places else "?" for group in groups]
        for key, values in found.items()
    }


def different_environments(records: Sequence[RunRecord]) -> dict[str, dict[str, int]]:
    """Key of ``environment.json`` → value → number of runs, for the keys that differ: such runs differ in more than
    their settings."""
    flat = [settings.compared(record.environment) for record in records if record.environment]
    keys = dict.fromkeys(key for environment in flat for key in environment if key != "command")
    found = dict[str, dict[str, int]]()
    for key in keys:
        values = [settings.text(environment.get(key)) for environment in flat]
        if len(set(values)) > 1:
            found[key] = {value: values.count(value) for value in dict.fromkeys(values)}
    return found


def signed(value: float, quantity: str) -> str:
    """A difference with its sign; shares in percentage points."""
    shown = f"{100 * abs(value):.1f}" if "points" in PAIRED[quantity] else number(abs(value))
    return shown if float(shown) == 0 else f"{'−' if value < 0 else '+'}{shown}"


def interval(found: Spread) -> str:
    """The 95 % interval of a share; equal values have none, as they say nothing about the spread."""
    if not found.sd:
        return "–"
    assert found.low is not None
    return f"{100 * found.low:.1f} to {percent(found.high)}".replace("-", "−")


def headline(groups: Sequence[Group]) -> str:
    """How many groups there are, and which has the highest mean accuracy where one has."""
    compared = f"{len(groups)} groups" if len(groups) > 1 else f"{groups[0].name}, {groups[0].n} seeds"
    spreads = [(group, group.spread("accuracy")) for group in groups if group.complete]
    found = sorted(((s.mean, group, s) for group, s in spreads if s is not None), key=lambda item: -item[0])
    if not found or (len(found) == 1 < len(groups)) or (len(found) > 1 and found[0][0] == found[1][0]):
        return compared
    _, group, best = found[0]
    value = percent(best.mean) if best.sd is None else f"{100 * best.mean:.1f} ± {percent(best.sd)}"
    if len(groups) == 1:
        return f"{compared}: accuracy {value}"
    return f"{compared}; highest mean accuracy {value}: {group.name}"


def report_link(run: Member, out: Path) -> str | None:
    """The address of the run's own report as seen from the page, None where there is none."""
    report = run.record.path / "report.html"
    if not report.is_file() or report.resolve() == out.resolve():
        return None
    return quote(os.path.relpath(report.resolve(), out.resolve().parent))


def view(groups: Sequence[Group], out: Path) -> Mapping[str, Any]:
    """Everything the template shows of a comparison but the curves."""
    runs, found = [run for group in groups for run in group.runs], different_settings(groups)
    return {
        "groups": groups,
        "runs": runs,
        "links": {run.name: report_link(run, out) for run in runs},
        "pairs": pairs(groups),
        "all_pairs": len(groups) <= ALL_PAIRS,
        "paired": PAIRED,
        "settings": found,
        "environments": different_environments([run.record for run in runs]),
        "headline": headline(groups),
        "states": _states(runs),
        "left_out": [f"{run.name} ({run.state})" for group in groups if group.complete for run in _incomplete(group)],
        "loss_note": LOSS_NOTE if any(key.startswith(OBJECTIVE) for key in found) else None,
    }


def _incomplete(group: Group) -> list[Member]:
    return [run for run in group.runs if not run.complete]


def _states(runs: Sequence[Member]) -> str:
    """``11 complete, 1 not``."""
    complete = sum(run.complete for run in runs)
    return f"{complete} complete" + (f", {len(runs) - complete} not" if complete < len(runs) else "")
