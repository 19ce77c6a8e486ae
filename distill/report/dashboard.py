"""The W&B workspace and comparison report, built from :mod:`distill.report.panels`: saved to W&B, or written as JSON.

Only building is done here without a network; ``wandb-workspaces`` is an optional extra.
"""

from __future__ import annotations

import importlib
import json
import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distill.errors import RunError, UserError
from distill.report.panels import HEADLINE, OPEN, SECTIONS, Lines, Media

STEP = "trainer/global_step"
"""The step that Lightning's logger adds to every record."""
LINE_LIMIT = 20
"""Runs that a chart draws; W&B's own limit is ten."""
DEFAULT_HOST = "https://api.wandb.ai"


def library(name: str) -> Any:
    """A module of ``wandb_workspaces``.

    Raises:
        UserError: the extra is not installed.
    """
    try:
        return importlib.import_module(f"wandb_workspaces.{name}")
    except ImportError as error:
        raise UserError("dashboard", "wandb-workspaces", "installed (`pip install 'distill[dashboard]'`)") from error


def workspace(project: str, entity: str, name: str) -> Any:
    """The workspace: every section, folded but for the first ones."""
    ws = library("workspaces")
    sections = [
        ws.Section(name=section.name, panels=[_panel(panel) for panel in section.panels], is_open=index < OPEN)
        for index, section in enumerate(SECTIONS)
    ]
    settings = ws.WorkspaceSettings(x_axis=STEP, max_runs=LINE_LIMIT)
    return ws.Workspace(project=project, entity=entity, name=name, sections=sections, settings=settings)


def comparison(project: str, entity: str, name: str, groups: list[str], runs: list[str]) -> Any:
    """The report: the headline over run sets, which are ``groups`` (``logger.group``) and ``runs`` (``logger.name``).

    Without either there is one run set of all runs, by group.
    """
    wr = library("reports.v2")
    sets = [wr.Runset(name=group, filters=f'Group == "{group}"') for group in groups]
    sets += [wr.Runset(name=run, filters=f'Name == "{run}"') for run in runs]
    blocks: list[Any] = [wr.P(text=" ".join(INTRODUCTION.split()))]
    for title, panels in (("Accuracy", (Lines("eval/accuracy", ("eval/accuracy",)),)), *CHAPTERS):
        grid = wr.PanelGrid(
            runsets=sets or [wr.Runset(name="All runs", groupby=["group"])],
            panels=[_placed(_panel(panel), index) for index, panel in enumerate(panels)],
        )
        blocks += [wr.H2(text=title), grid]
    return wr.Report(project=project, entity=entity, title=f"{name}: comparison", blocks=blocks, width="fluid")


CHAPTERS: tuple[tuple[str, tuple[Lines | Media, ...]], ...] = (
    ("Sparsity, its null and the size of the update", HEADLINE),
    *((section.name, section.panels) for section in SECTIONS if section.name in ("Groups", "Geometry", "Cost")),
)
INTRODUCTION = """Update sparsity is the share of coordinates with |Δ| ≤ tolerance against the weights before training.
Rounding to bf16 alone makes most of a small random update vanish: what a run shows is what exceeds its rounding null.
Compare runs of a like relative norm."""


def _panel(panel: Lines | Media) -> Any:
    wr = library("reports.v2")
    if isinstance(panel, Media):
        return wr.MediaBrowser(title=panel.title, media_keys=list(panel.keys), num_columns=1)
    chosen = {"y": list(panel.keys)} if panel.prefix is None else {"metric_regex": f"^{panel.prefix}"}
    return wr.LinePlot(title=panel.title, x=STEP, max_runs_to_show=LINE_LIMIT, **chosen)


def _placed(panel: Any, index: int) -> Any:
    """Three to a row of W&B's 24 columns."""
    panel.layout = library("reports.v2").Layout(x=8 * (index % 3), y=6 * (index // 3), w=8, h=6)
    return panel


def specification(workspace: Any, report: Any) -> dict[str, Any]:
    """What W&B would be sent, as plain values."""
    # The library offers its models by this method alone; tests/unit/report/test_dashboard.py holds it to that.
    return {
        kind: view._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
        for kind, view in (("workspace", workspace), ("report", report))
    }


def write(specified: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(specified, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save(workspace: Any, report: Any) -> list[str]:
    """Saves both to W&B and returns their addresses.

    Raises:
        RunError: W&B does not take them.
    """
    try:
        return [view.save().url for view in (workspace, report)]
    except Exception as error:
        # The library raises bare exceptions for everything: no network, no rights, no project.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunError(f"W&B has not saved the dashboard ({reason}); out=FILE writes it instead.") from error


def logged_in() -> bool:
    """Whether there is a key for W&B: in the environment, or where ``wandb login`` has put it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", DEFAULT_HOST)).hostname or ""
    path = os.environ.get("NETRC")
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def default_entity() -> str:
    """Whom the key belongs to.

    Raises:
        RunError: W&B does not say.
    """
    import wandb

    try:
        return str(wandb.Api().default_entity)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise RunError(f"W&B does not say whose key this is ({reason}); `entity` names the owner.") from error
