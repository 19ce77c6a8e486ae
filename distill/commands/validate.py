"""``distill validate``: composes and checks the configuration of ``distill train`` without starting anything."""

from __future__ import annotations

from collections.abc import Sequence

from distill.commands import compose
from distill.config import checks


def run(overrides: Sequence[str], multirun: bool, config_dir: str | None) -> int:
    """Prints one line. The processes a run needs are not asked for: a cluster's run can be checked anywhere.

    Raises:
        ConfigError: naming all that is wrong.
    """
    jobs = compose.check("train", overrides, multirun=multirun, config_dir=config_dir, own_check=checks.run)
    if multirun:
        print(f"ok: {len(jobs)} runs")
    else:
        print("ok: " + " ".join(f"{group}={option}" for group, option in sorted(jobs[0].choices.items()) if option))
    return 0
