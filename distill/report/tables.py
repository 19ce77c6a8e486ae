"""The tables of a report: settings, sparsity by tolerance, group, layer and module, and rollouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distill.analysis.naming import GROUPS
from distill.config.stages import recorded
from distill.report import card
from distill.report.collect import RunRecord, at
from distill.report.summary import duration

SAMPLES = 12
"""Rollouts shown of the first and of the last evaluation."""

FACTS = {
    "student": ("student", "path"),
    "teacher": ("teacher", "path"),
    "data": ("data", "source"),
    "rollout": ("rollout", "kind"),
    "divergence": ("objective", "divergence"),
    "optimizer": ("optimizer", "name"),
    "learning rate": ("optimizer", "lr"),
    "batch size": ("data", "batch_size"),
    "seed": ("seed",),
}
"""Settings shown at the top: label → key in ``config.yaml``."""


@dataclass(frozen=True)
class HeatMap:
    """Sparsity of each module of each layer. A cell is (value, place between ``least`` and ``most``) or None."""

    columns: list[str]
    rows: list[tuple[int, list[tuple[float, float] | None]]]
    least: float
    most: float


PNG = "data:image/png;base64,"
"""The one kind of picture that a page shows: it can carry no script."""


@dataclass(frozen=True)
class Verdict:
    """One rollout; ``right`` is None where the data has no verifier, ``picture`` a PNG in a data URI or empty."""

    step: int
    prompt: str
    completion: str
    answer: str
    right: bool | None
    picture: str = ""


def facts(run: RunRecord) -> dict[str, str]:
    """The settings that matter, then what the run processed and where its time went."""
    found = {label: _of_stages(run, keys) for label, keys in FACTS.items()}
    if run.setting("teacher", "kind") in ("multi", "self", "cotrained"):
        found["teacher"] = card.teacher(run.config["teacher"]).replace("`", "")
    if run.setting("objective", "logit_weight") == 0 and not run.setting("stages"):
        del found["divergence"]
    shown = {label: value for label, value in found.items() if value is not None}
    tokens = run.last("tokens")
    if tokens is not None:
        shown["target tokens"] = f"{tokens:,.0f}"
    for key in ("rollout", "sparsity"):
        spent = sum(value for _, value in run.series(f"time/{key}"))
        if spent and run.seconds:
            shown[f"time in {key}"] = f"{duration(spent)} ({100 * spent / run.seconds:.1f} %)"
    return shown


def _of_stages(run: RunRecord, keys: tuple[str, ...]) -> str | None:
    """A setting as text; of a run of stages that do not agree, the value of each."""
    values = [str(value) for config in recorded(run.config) if (value := at(config, keys)) is not None]
    return " → ".join(values[:1] if len(set(values)) == 1 else values) or None


def groups(run: RunRecord) -> list[tuple[str, float | None, float | None, float | None]]:
    """(group, sparsity, share of the update's energy, relative norm) at the last measurement, bf16 at 1e-5."""
    columns = [run.latest(f"{key}/group/") for key in ("sparsity", "update/energy", "update/relative_norm")]
    return [(name, *(column.get(name) for column in columns)) for name in GROUPS if name in columns[0]]  # type: ignore[misc]


def tolerances(run: RunRecord) -> list[tuple[str, float | None, float | None]]:
    """(tolerance, sparsity in bf16, in fp32) at the last measurement."""
    bf16, fp32 = run.latest("sparsity/bf16/"), run.latest("sparsity/fp32/")
    return [(label, bf16.get(label), fp32.get(label)) for label in dict.fromkeys([*bf16, *fp32])]


def measured_at(run: RunRecord) -> int | None:
    """The optimizer step of the last measurement of sparsity."""
    return next((step for step, _ in reversed(run.series("sparsity/bf16/1e-5"))), None)


def heat_map(run: RunRecord) -> HeatMap | None:
    """Layer by module sparsity at the last measurement, None without one."""
    cells: dict[tuple[int, str], float] = {}
    for name, value in run.latest("sparsity/module/").items():
        layer, _, module = name.partition(".")
        cells[int(layer), module] = value
    if not cells:
        return None
    least, most = min(cells.values()), max(cells.values())
    columns = list(dict.fromkeys(module for _, module in cells))

    def cell(value: float | None) -> tuple[float, float] | None:
        return None if value is None else (value, (value - least) / (most - least) if most > least else 1.0)

    rows = [
        (layer, [cell(cells.get((layer, module))) for module in columns])
        for layer in sorted({layer for layer, _ in cells})
    ]
    return HeatMap(columns, rows, least, most)


def samples(run: RunRecord) -> list[tuple[int, list[Verdict]]]:
    """Rollouts by step: those of the first and of the last evaluation."""
    steps: dict[int, list[dict[str, Any]]] = {}
    for record in run.samples:
        if isinstance(record.get("step"), int):
            steps.setdefault(record["step"], []).append(record)
    ends = sorted({min(steps), max(steps)}, reverse=True) if steps else []
    return [(step, [_verdict(record) for record in steps[step][:SAMPLES]]) for step in ends]


def _verdict(record: dict[str, Any]) -> Verdict:
    score = record.get("score")
    prompt, completion, answer = (
        "" if record.get(key) is None else str(record[key]) for key in ("prompt", "completion", "answer")
    )
    right = score >= 1 if isinstance(score, int | float) else None
    picture = str(record.get("picture", ""))
    shown = picture if picture.startswith(PNG) else ""
    return Verdict(record["step"], prompt, completion, answer, right, shown)
