"""``distill dashboard project=NAME``: the W&B workspace and comparison report of a project, as code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.report import dashboard

FILE = "dashboard.json"


def run(config: dict[str, Any], run_dir: Path) -> int:
    """Keys: ``project``, ``entity``, ``name``, ``groups`` and ``runs`` to compare, ``out``.

    With ``out``, or without a key for W&B, both are written as JSON (by default to ``dashboard.json``).

    Raises:
        UserError: ``wandb-workspaces`` is not installed.
        RunError: W&B does not answer, or refuses.
    """
    local = config["out"] is not None or not dashboard.logged_in()
    entity = config["entity"] or ("" if local else dashboard.default_entity())
    workspace = dashboard.workspace(config["project"], entity, config["name"])
    report = dashboard.comparison(config["project"], entity, config["name"], config["groups"], config["runs"])
    if local:
        out = Path(config["out"] or FILE)
        dashboard.write(dashboard.specification(workspace, report), out)
        why = "" if config["out"] is not None else " (no login: WANDB_API_KEY or `wandb login` saves it to W&B)"
        print(f"written to {out}{why}")
        return 0
    for address in dashboard.save(workspace, report):
        print(f"saved: {address}")
    return 0
