"""``distill plan [words of distill train] [plan.KEY=VALUE]…``: memory per rank, disk and tokens of a run to come."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.planning import advice, fit, plan, table
from distill.quiet import quiet_libraries


def run(config: dict[str, Any], run_dir: Path) -> int:
    """Prints the plan, and writes it to ``plan.out`` as JSON; nothing is loaded or downloaded.

    Raises:
        UserError: a model's configuration, a tokenizer or the data is not on this machine.
    """
    quiet_libraries()
    planner = plan.prepare(config)
    made = plan.make(config, planner)
    made = replace(made, largest_micro_batch_size=fit.largest(planner, made))
    made = replace(made, advice=advice.give(made, config))
    print(table.render(made))
    if config["plan"]["out"] is not None:
        Path(config["plan"]["out"]).write_text(json.dumps(made.as_dict(), indent=2) + "\n", encoding="utf-8")
    return 0
