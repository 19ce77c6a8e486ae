"""Run records → one HTML page that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from distill.analysis.naming import GROUPS
from distill.analysis.sparsity_labels import LABELS
from distill.report.charts import Line, line_chart
from distill.report.collect import RunRecord
from distill.report.summary import Summary, duration, number, percent, summarise

TEMPLATE = "page.html.j2"
SAMPLES = 12
"""Rollouts shown of the first and of the last evaluation."""


@dataclass(frozen=True)
class HeatMap:
    """Sparsity of each module of each layer; ``cells`` are (value, share of the range from least to most) or None."""

    columns: list[str]
    rows: list[tuple[str, list[tuple[float, float] | None]]]
    least: float
    most: float


def render(records: Sequence[RunRecord], out: Path) -> None:
    """Writes the page of one run, or of several with a table and overlaid curves."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {"percent": percent, "number": number, "duration": duration, "yaml": _as_yaml}
    runs = [view(record) for record in records]
    charts = single_charts(records[0]) if len(records) == 1 else overlaid_charts(records)
    html = pages.get_template(TEMPLATE).render(runs=runs, charts=charts)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8")


def view(record: RunRecord) -> dict[str, Any]:
    """Everything the template shows of one run."""
    return {
        "record": record,
        "summary": summarise(record),
        "facts": facts(record),
        "groups": groups(record),
        "tolerances": tolerances(record),
        "heat_map": heat_map(record),
        "samples": samples(record),
    }


def single_charts(record: RunRecord) -> list[tuple[str, str]]:
    """(title, svg) of the curves one run has."""
    divergence = record.setting("objective", "divergence") or "divergence"
    loss, terms = record.series("loss"), [(name, record.series(name)) for name in (divergence, "ce")]
    # With one term of weight 1 its curve is the loss itself.
    lines = [Line("loss", loss), *(Line(name, points) for name, points in terms if points != loss)]
    found = [
        ("Accuracy on held-out prompts", *_accuracy(record), True),
        ("Loss per target token", lines, False),
        ("KL on the student's own rollouts, nats per token", _lines(record, {
            "eval/reverse_kl": "KL(student ‖ teacher)", "eval/forward_kl": "KL(teacher ‖ student)"}), False),
    ]
    return []
