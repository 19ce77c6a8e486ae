"""``distill plan [words of distill train] [plan.KEY=VALUE]…``: memory per rank, disk and tokens of a run to come."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.config import stages
from distill.config.stages import RUN
from distill.planning import advice, fit, plan, table
from distill.quiet import quiet_libraries


def run(config: dict[str, Any], run_dir: Path) -> int:
    """Prints the plan, of every stage where there are several, and writes it to ``plan.out`` as JSON; nothing is loaded
    or downloaded.

    Raises:
        UserError: a model's configuration, a tokenizer or the data is not on this machine.
    """
    quiet_libraries()
    found = {name: _plan(one | {"plan": config["plan"]}) for name, one in stages.runs(config).items()}
    for name, made in found.items():
        print((f"stage {name}\n" if name != RUN else "") + table.render(made))
    if config["plan"]["out"] is not None:
        plans = {name: made.as_dict() for name, made in found.items()}
        content = {"stages": plans} if len(plans) > 1 else plans[RUN]
        Path(config["plan"]["out"]).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


def _plan(config: dict[str, Any]) -> plan.Plan:
    planner = plan.prepare(config)
    made = plan.make(config, planner)
    made = replace(made, largest_micro_batch_size=fit.largest(planner, made))
    return replace(made, advice=advice.give(made, config))
