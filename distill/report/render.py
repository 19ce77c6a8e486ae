"""Run records → one HTML page that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from distill.report import curves, tables
from distill.report.collect import RunRecord
from distill.report.summary import duration, number, percent, summarise

TEMPLATE = "page.html.j2"


def render(records: Sequence[RunRecord], out: Path) -> None:
    """Writes the page of one run, or of several with a table and overlaid curves."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {"percent": percent, "number": number, "duration": duration, "yaml": _as_yaml}
    names = distinct_names(records)
    runs = [view(name, record) for name, record in zip(names, records, strict=True)]
    charts = curves.of_one(records[0]) if len(records) == 1 else curves.of_several(records)
    html = pages.get_template(TEMPLATE).render(runs=runs, charts=charts)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8")


def view(name: str, record: RunRecord) -> dict[str, Any]:
    """Everything the template shows of one run."""
    return {
        "name": name,
        "record": record,
        "summary": summarise(record),
        "facts": tables.facts(record),
        "groups": tables.groups(record),
        "tolerances": tables.tolerances(record),
        "measured_at": tables.measured_at(record),
        "heat_map": tables.heat_map(record),
        "samples": tables.samples(record),
    }


def distinct_names(records: Sequence[RunRecord]) -> list[str]:
    """Names of the run directories, with as many parents as tell them apart."""
    paths = [record.path.resolve().parts for record in records]
    depth = 1
    while len({path[-depth:] for path in paths}) < len(set(paths)):
        depth += 1
    return ["/".join(path[-depth:]) for path in paths]


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
