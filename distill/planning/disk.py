"""Bytes a run leaves on disk, and the tokens it goes through."""

from __future__ import annotations

import math
from typing import Any

from distill import schedule
from distill.planning.memory import States
from distill.planning.workload import Workload

RECORD = 4096
"""Bytes of metrics and samples per optimizer step, rounded up from runs of all recipes."""


def checkpoint(config: dict[str, Any], states: States, moments: int, saved: int) -> int:
    """One resumable state: every tensor of the student (``saved`` bytes), masters under ZeRO, and the moments."""
    masters = 4 if config["trainer"]["strategy"].startswith("zero") else 0
    itemsize = 4 if masters else states.itemsize
    return saved + states.trained * (masters + itemsize * moments)


def usage(config: dict[str, Any], states: States, exported: int, state: int) -> dict[str, int]:
    """Bytes by part of the run directory, at the moment of most: retention is applied after a save."""
    found = {"source": exported, "model": exported}
    options, steps = config["callbacks"]["checkpoint"], config["trainer"]["max_steps"]
    kept = 0
    if options is not None:
        saves = math.ceil(steps / options["every_n_steps"])
        kept = options["keep_last"] + options.get("keep_best", 0)
        if every := options.get("keep_every_n_steps"):
            kept += steps // every
        kept = min(saves, kept + 1)
        found["checkpoints"] = state * kept
    measuring = config["callbacks"]["sparsity"]
    if measuring is not None and measuring["since_last"]:
        measurements = math.ceil(steps / measuring["every_n_steps"])
        # Each checkpoint may need one; the newest is there before the one that it replaces goes.
        found["sparsity"] = _measured(config, states) * min(measurements, kept + 2)
    if config["callbacks"]["extrapolation"] is not None and options is not None:
        masters = config["trainer"]["strategy"].startswith("zero")
        # There is one for each power of two up to the last step.
        found["extrapolation"] = (
            states.extrapolated * (4 if masters else states.itemsize) * min(steps.bit_length(), kept + 1)
        )
    found["logs"] = RECORD * steps + (1 << 20)
    return found


def _measured(config: dict[str, Any], states: States) -> int:
    """Bytes of the weights as they are measured: ZeRO's masters in place of weights in half precision."""
    masters = config["trainer"]["strategy"].startswith("zero")
    return states.weights + states.trained * (4 - min(states.itemsize, 4) if masters else 0)


def tokens(config: dict[str, Any], work: Workload, ranks: int) -> dict[str, int]:
    """Tokens through the student's training passes, and sampled by it, per optimizer step and in the whole run.

    Rollouts count with their limit, or the model's where that is less.
    """
    per_step = round(work.rows * work.mean_length) * ranks
    found = {"per step": per_step, "run": per_step * work.steps}
    rollout = config["rollout"]
    if rollout["kind"] != "dataset":
        share = work.rows * ranks * work.new_tokens * schedule.mean(rollout["on_policy_fraction"], work.steps)
        found |= {"sampled per step": round(share), "sampled in the run": round(share * work.steps)}
    return found
