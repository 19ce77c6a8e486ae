"""The page of one ``distill analyze``: reads the folder's files only, writes ``report.html`` and PNG plots to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from distill.report import analysis_charts, analysis_folder, analysis_tables, opening, wording
from distill.report.analysis_folder import PRECISIONS, Analysis
from distill.report.findings import ABOVE, ALONE, BELOW, NEGLIGIBLE, SAME, UNDECIDED, Finding, findings
from distill.report.glossary import GLOSSARY, SOURCES
from distill.report.vocabulary import RUNS

PAGE = "report.html"
SECTIONS = {
    "Other than rounding explains": (ABOVE, BELOW),
    "Not decided": (UNDECIDED,),
    "No more than rounding explains": (SAME, NEGLIGIBLE),
    "Measured without a null": (ALONE,),
}
"""Where the findings stand on the page, by verdict."""
SIGNS = {ABOVE: "▲", BELOW: "▼", SAME: "≈", NEGLIGIBLE: "≈", UNDECIDED: "?", ALONE: "·"}


def clear(folder: Path) -> None:
    """Removes the page and the pictures of an earlier analysis: a new one may have nothing to show for some."""
    for name in (PAGE, *analysis_charts.files()):
        (folder / name).unlink(missing_ok=True)


def render(folder: Path) -> Path:
    """Draws and writes everything; returns the page. The same files give the same page, byte by byte.

    Raises:
        UserError: ``summary.json`` is missing, or a file is broken.
    """
    analysis = analysis_folder.read(folder)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pages.globals |= {"value": wording.value, "gap": wording.gap, "spread": wording.spread, "z": wording.deviations}
    shown = view(analysis) | {"charts": analysis_charts.draw(analysis, folder)}
    page = folder / PAGE
    page.write_text(pages.get_template("analysis.html.j2").render(shown), encoding="utf-8")
    return page


def view(analysis: Analysis) -> dict[str, Any]:
    """Everything the template shows but the charts."""
    summary, found = analysis.summary, findings(analysis.summary)
    families = analysis_tables.families(summary)
    return {
        "summary": summary,
        "headline": opening.headline(summary),
        "paragraphs": opening.paragraphs(summary, found),
        "notes": opening.notes(summary),
        "sections": _sections(found),
        "signs": SIGNS,
        "two_runs": families.pop(RUNS, []),
        "families": families,
        "groups": [table for name in PRECISIONS if (table := analysis_tables.by_group(analysis, name))],
        "maps": analysis_charts.maps(analysis),
        "unmatched": analysis_tables.unmatched(summary),
        "glossary": GLOSSARY,
        "sources": SOURCES,
    }


def _sections(found: list[Finding]) -> dict[str, list[Finding]]:
    """Findings by section, those of bf16; an fp32 one only where it belongs into another section."""
    place = {verdict: name for name, verdicts in SECTIONS.items() for verdict in verdicts}
    bf16 = {one.key: place[one.verdict] for one in found if one.precision == "bf16"}
    told = [one for one in found if one.precision == "bf16" or bf16.get(one.key) != place[one.verdict]]
    sections = {name: [one for one in told if place[one.verdict] == name] for name in SECTIONS}
    return {name: members for name, members in sections.items() if members}
