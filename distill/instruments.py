"""The callbacks of a run, from that section of its configuration: what measures, what saves, a user's own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning as L

from distill import checkpoint, components, resharding, startup, strategies, watchdog
from distill.callbacks.checkpoint import SaveCheckpoint
from distill.callbacks.confine import GradientSubspace
from distill.callbacks.evaluation import Evaluation
from distill.callbacks.geometry import Geometry
from distill.callbacks.metrics import Metrics
from distill.callbacks.moments import OptimizerState
from distill.callbacks.progress import ProgressReport
from distill.callbacks.sparsity import UpdateSparsity
from distill.callbacks.update_mask import UpdateMask
from distill.data.base import Dataset
from distill.errors import UserError
from distill.evaluation import evaluate
from distill.models.causal_lm import CausalLM
from distill.retention import Retention
from distill.rundir import GEOMETRY, SPARSITY
from distill.subnetwork import Subnetwork
from distill.teachers.base import Teacher

T = TypeVar("T")
Context = Callable[[], AbstractContextManager[object]]


def confining(config: dict[str, Any], run_dir: Path, subnetwork: Subnetwork | None) -> list[L.Callback]:
    """What keeps the update inside of a mask; it comes before what measures, and before what saves."""
    if subnetwork is None:
        return []
    saved = config["callbacks"]["checkpoint"]
    every = None if saved is None else saved["every_n_steps"]
    source, masks, checksum = run_dir / "source", subnetwork.mask, subnetwork.checksum
    return [UpdateMask(source, masks, checksum=checksum, density=subnetwork.density, every_n_steps=every)]


def measuring(
    config: dict[str, Any],
    run_dir: Path,
    judged: tuple[CausalLM, Teacher | None, Dataset],
    progress: ProgressReport,
    inference: Context,
) -> list[L.Callback]:
    """What measures; ``judged`` are student, teacher and held-out data, and ``inference`` surrounds their use."""
    options, found = config["callbacks"], list[L.Callback]()
    if options["sparsity"] is not None:
        saved = partial(checkpoint.steps, run_dir)
        found.append(UpdateSparsity(run_dir / "source", folder=run_dir / SPARSITY, saved=saved, **options["sparsity"]))
    if options["geometry"] is not None:
        parts = {**options["geometry"], "seed": config["seed"]}
        found.append(Geometry(run_dir / "source", run_dir / GEOMETRY, **parts))
    if options["gradient_subspace"] is not None:
        # Before what looks at the gradients that the step uses.
        found.append(GradientSubspace(run_dir / "source", **options["gradient_subspace"]))
    if options["optimizer_state"] is not None:
        found.append(OptimizerState(**options["optimizer_state"]))
    if options["evaluation"] is not None:
        shared = {
            "max_new_tokens": config["rollout"]["max_new_tokens"],
            "batch_size": config["rollout"]["batch_size"],
            "seed": config["seed"],
            "limit": config["data"]["eval_size"],
            "on_progress": partial(progress.activity, "evaluation"),
        }
        keep = options["evaluation"]["samples"]
        found.append(
            Evaluation(
                _within(inference, partial(evaluate, *judged, keep_samples=keep, **shared)),
                _within(inference, partial(startup.measure, *judged, _identical(config), shared)),
                run_dir / "samples.jsonl",
                options["evaluation"]["every_n_steps"],
            )
        )
    return found


def _identical(config: dict[str, Any]) -> bool:
    """True where teacher and student start from the same weights, in the same precision."""
    student, teacher = config["student"], config["teacher"]
    same = all(teacher[key] == student[key] for key in ("path", "config", "revision", "dtype"))
    plain = teacher["kind"] == "frozen" and teacher["prompt"] is None
    return same and plain and not strategies.trains_in_bf16(config["trainer"])


def saving(config: dict[str, Any], run_dir: Path, lm: CausalLM, metrics: Metrics) -> list[L.Callback]:
    """The callback that saves checkpoints, unless there are to be none."""
    if config["callbacks"]["checkpoint"] is None:
        return []
    options = dict(config["callbacks"]["checkpoint"])
    every = options.pop("every_n_steps")
    layout = resharding.layout(config["trainer"], lm.model)
    return [SaveCheckpoint(run_dir, every, Retention(**options), layout, lambda: metrics.current)]


def instantiate(key: str, component: dict[str, Any]) -> L.Callback:
    """Builds ``{"_target_": "module.Class", **arguments}``. Raises UserError for what is no callback."""
    made = components.make(key, component)
    if not isinstance(made, L.Callback):
        raise UserError(f"{key}._target_", component["_target_"], "a class of Lightning callbacks")
    return made


def _within(context: Context, function: Callable[[], T]) -> Callable[[], T]:
    def inside() -> T:
        with watchdog.phase("evaluation"), context():
            return function()

    return inside
