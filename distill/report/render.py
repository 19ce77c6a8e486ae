"""Run records → one HTML page that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from distill.report import comparison, curves, stages, tables
from distill.report.bands import style
from distill.report.collect import RunRecord
from distill.report.comparison import interval, signed
from distill.report.groups import grouped
from distill.report.spread import verdict
from distill.report.summary import count, duration, number, percent, summarise

FORMATS = {"percent": percent, "number": number, "duration": duration, "count": count}


def render(records: Sequence[RunRecord], out: Path) -> None:
    """Writes the page of one run, or the comparison of several."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {**FORMATS, "yaml": _as_yaml}
    pages.globals |= {**FORMATS, "style": style, "verdict": verdict, "signed": signed, "interval": interval}
    if len(records) == 1:
        html = pages.get_template("page.html.j2").render(one=view(records[0]), charts=curves.of_one(records[0]))
    else:
        groups = grouped(records)
        shown = comparison.view(groups, out)
        html = pages.get_template("compare.html.j2").render(shown, charts=curves.of_groups(groups, shown["loss_note"]))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8")


def view(record: RunRecord) -> dict[str, Any]:
    """Everything the template shows of one run but its curves."""
    return {
        "name": record.name,
        "record": record,
        "summary": summarise(record),
        "facts": tables.facts(record),
        "groups": tables.groups(record),
        "tolerances": tables.tolerances(record),
        "measured_at": tables.measured_at(record),
        "heat_map": tables.heat_map(record),
        "samples": tables.samples(record),
        "stages": stages.table(record.path),
    }


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
