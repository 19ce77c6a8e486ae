"""The callbacks of a run, from that section of its configuration: what measures, what saves, a user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch

from distill import checkpoint, collapse, components, data, resharding, sharding, strategies, tasks, watchdog
from distill.analysis.variance import Blocks
from distill.callbacks import extrapolation, gradient_variance
from distill.callbacks.checkpoint import SaveCheckpoint
from distill.callbacks.confine import GradientSubspace
from distill.callbacks.deadline import Deadline
from distill.callbacks.evaluation import Evaluation
from distill.callbacks.extrapolation import Extrapolation
from distill.callbacks.feature_maps import FeatureMaps
from distill.callbacks.geometry import Geometry
from distill.callbacks.gradient_variance import GradientVariance
from distill.callbacks.metrics import Metrics
from distill.callbacks.moments import OptimizerState
from distill.callbacks.progress import ProgressReport
from distill.callbacks.rollouts import FILE, Rollouts
from distill.callbacks.sparsity import UpdateSparsity
from distill.callbacks.update_mask import UpdateMask
from distill.data.base import Dataset, Examples
from distill.data.sampler import indices
from distill.data.subset import Subset
from distill.data.window import WindowLoader
from distill.errors import UserError
from distill.evaluation import score
from distill.features import STUDENT, FeatureTerms
from distill.gradients import BlockGradients
from distill.images import ImageRow, collate
from distill.models.base import Network
from distill.models.causal_lm import CausalLM, evaluating
from distill.retention import Retention
from distill.rundir import EXTRAPOLATION, GEOMETRY, ONLINE, SPARSITY
from distill.subnetwork import Subnetwork
from distill.teachers.base import Teacher
from distill.teachers.cached import CachedTeacher

T = TypeVar("T")
Context = Callable[[], AbstractContextManager[object]]


ORDER = 2**32
"""Seed of the order that chooses the rows of ``callbacks.extrapolation``: no run's, so that they are not its first."""


def extrapolating(
    config: dict[str, Any],
    run_dir: Path,
    judged: tuple[CausalLM, Teacher | None, Dataset],
    progress: ProgressReport,
    inference: Context,
    deadline: Deadline | None,
) -> list[L.Callback]:
    """What moves weights after the optimizer has; everything else sees where to. ``judged`` are student, teacher and
    training data.

    Raises:
        UserError: there are fewer rows than it is to be judged by, or nothing that could judge.
    """
    options = config["callbacks"]["extrapolation"]
    if options is None:
        return []
    return [
        Extrapolation(
            _scoring(config, judged, inference),
            options["candidates"],
            run_dir / EXTRAPOLATION,
            saved=partial(checkpoint.steps, run_dir),
            on_progress=partial(progress.activity, "extrapolation"),
            deadline=deadline,
        )
    ]


def _scoring(
    config: dict[str, Any], judged: tuple[CausalLM, Teacher | None, Dataset], inference: Context
) -> extrapolation.Score:
    """The score of the student on the rows of ``callbacks.extrapolation``."""
    options, (student, teacher, data) = config["callbacks"]["extrapolation"], judged
    extrapolation.check_examples(options["examples"], len(data))
    # A student that is its own teacher comes nearest to it by answering everything alike.
    if not data.has_verifier and (teacher is None or config["teacher"]["kind"] == "self"):
        allowed = "null without answers in the training data, and without a teacher that stays as it is"
        raise UserError(extrapolation.KEY, options, allowed)
    rows = Subset(data, tuple(indices(len(data), ORDER, 0, options["examples"])))
    sizes = {key: config["rollout"][key] for key in ("max_new_tokens", "batch_size")}

    def judge(on_progress: Callable[[int], None]) -> float:
        with inference():
            return score(student, teacher, rows, **sizes, seed=config["seed"], on_progress=on_progress)

    return judge


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
    judged: tuple[Network, Teacher | None, Examples, Mapping[str, Network]],
    progress: ProgressReport,
    inference: Context,
) -> list[L.Callback]:
    """What measures; ``judged`` are student, teacher, held-out data and the networks that are trained beside the
    student, and ``inference`` surrounds their use."""
    options, found = config["callbacks"], list[L.Callback]()
    found += _sparsities(config, run_dir, judged[3])
    if options["geometry"] is not None:
        parts = {**options["geometry"], "seed": config["seed"]}
        found.append(Geometry(run_dir / "source", run_dir / GEOMETRY, **parts))
    if options["gradient_subspace"] is not None:
        # Before what looks at the gradients that the step uses.
        found.append(GradientSubspace(run_dir / "source", **options["gradient_subspace"]))
    if options["optimizer_state"] is not None:
        found.append(OptimizerState(**options["optimizer_state"]))
    if options["evaluation"] is not None:
        found.append(_evaluation(config, run_dir, judged, progress, inference))
    found += collapse.watching(config, judged[3], judged[2], data.judged(config)["eval_size"], inference)
    return found


def _sparsities(config: dict[str, Any], run_dir: Path, cotrained: Mapping[str, Network]) -> list[L.Callback]:
    """Of the student, and of each network that is trained with it."""
    if config["callbacks"]["sparsity"] is None:
        return []
    saved, asked = partial(checkpoint.steps, run_dir), dict(config["callbacks"]["sparsity"])
    origin = asked.pop("origin")
    beside = {"saved": saved, "origin": None if origin is None else Path(origin), **asked}
    found: list[L.Callback] = [UpdateSparsity(run_dir / "source", folder=run_dir / SPARSITY, **beside)]
    for name in cotrained:
        own = run_dir / ONLINE / name
        found.append(UpdateSparsity(own / "source", folder=own / SPARSITY, **beside | {"origin": None}, network=name))
    return found


def _evaluation(
    config: dict[str, Any],
    run_dir: Path,
    judged: tuple[Network, Teacher | None, Examples, Mapping[str, Network]],
    progress: ProgressReport,
    inference: Context,
) -> Evaluation:
    task, options = tasks.of(config), config["callbacks"]["evaluation"]
    student, teacher, held_out, cotrained = judged
    ours = student, teacher, held_out
    shared = {
        "max_new_tokens": config["rollout"]["max_new_tokens"],
        "batch_size": config["rollout"]["batch_size"],
        "seed": config["seed"],
        "limit": data.judged(config)["eval_size"],
        "on_progress": partial(progress.activity, "evaluation"),
    }
    others = {
        name: _within(inference, partial(task.evaluate, network, None, held_out, keep_samples=0, **shared))
        for name, network in cotrained.items()
    }
    return Evaluation(
        _within(inference, partial(task.evaluate, *ours, keep_samples=options["samples"], **shared)),
        _within(inference, partial(task.measure, *ours, _identical(config), shared)),
        run_dir / "samples.jsonl",
        options["every_n_steps"],
        others,
    )


def varying(
    config: dict[str, Any],
    parts: tuple[Network, Teacher | None, Subnetwork | None],
    loader: WindowLoader,
    autocast: Context,
    by_layer: bool,
) -> list[L.Callback]:
    """What measures how noisy gradients are; ``parts`` are student, teacher and mask. ``autocast`` surrounds forward
    passes, and a student in shards is gathered ``by_layer`` or at once.

    Raises:
        UserError: the teacher can be asked at another temperature only.
    """
    options = config["callbacks"]["gradient_variance"]
    if options is None:
        return []
    lm, teacher, mask = parts
    assert teacher is not None, "configurations without one are refused"
    _check_temperature(teacher, options)
    task = tasks.of(config)
    measured = BlockGradients(
        lm,
        teacher,
        task.rows(config),
        task.collate(lm),
        options["blocks"],
        options["sketch"],
        loader.micro_rows,
        config["objective"]["chunk_size"],
        autocast,
        partial(sharding.by_layer, lm.model, backward=True) if by_layer else partial(sharding.whole, lm.model),
        lockstep=by_layer or config["teacher"]["placement"] != "replicated",
        mask=None if mask is None else mask.mask,
    )
    horizon = options["horizon"] or config["trainer"]["max_steps"]

    def measure(device: torch.device) -> Blocks | None:
        return measured(loader.upcoming(), device, loader.next_step())

    return [GradientVariance(measure, every_n_steps=options["every_n_steps"], horizon=horizon)]


def _check_temperature(teacher: Teacher, options: dict[str, Any]) -> None:
    if isinstance(teacher, CachedTeacher) and teacher.head is None and teacher.made.temperature != 1:
        allowed = f"null with a cache made at temperature {teacher.made.temperature}: gradients are compared at 1"
        raise UserError(gradient_variance.KEY, options, allowed)


def mapping(
    config: dict[str, Any], run_dir: Path, parts: tuple[FeatureTerms | None, Teacher | None, Any], inference: Context
) -> list[L.Callback]:
    """What draws where student and teacher agree; ``parts`` are the feature terms, the teacher and held-out images."""
    options = config["callbacks"]["feature_maps"]
    if options is None:
        return []
    terms, teacher, data = parts
    assert terms is not None, "configurations without them are refused"
    assert teacher is not None
    samples = [data[number] for number in range(min(options["images"], len(data)))]
    images = collate([ImageRow(sample.id, sample.pixels, sample.label) for sample in samples], len(samples))

    def look(device: torch.device) -> dict[str, torch.Tensor]:
        batch, student = images.to(device), terms.networks[STUDENT]
        with inference(), evaluating(student.model), terms.watching():
            teacher.signal(batch)
            student.signal(batch)
            # With description 'classes' a teacher's head reads the places.
            with sharding.gathered(teacher.head_parameters):
                return terms.maps(batch)

    return [FeatureMaps(look, images.pixels, run_dir, options["every_n_steps"])]


def rollouts(config: dict[str, Any], run_dir: Path, lm: CausalLM) -> list[Rollouts]:
    """What shows the sequences trained on, where a rollout makes them."""
    options = config["callbacks"]["rollouts"]
    if options is None or config["rollout"]["kind"] == "dataset":
        return []
    return [Rollouts(run_dir / FILE, lambda ids: str(lm.tokenizer.decode(ids)), **options)]


def _identical(config: dict[str, Any]) -> bool:
    """True where teacher and student start from the same weights, in the same precision."""
    student, teacher = config["student"], config["teacher"]
    same = all(teacher[key] == student[key] for key in ("path", "config", "revision", "dtype"))
    whole = student["layers"] is None and not student["new_head"]
    plain = teacher["kind"] == "frozen" and teacher["prompt"] is None and whole
    return same and plain and not strategies.trains_in_bf16(config["trainer"])


def saving(config: dict[str, Any], run_dir: Path, lm: Network, metrics: Metrics) -> list[L.Callback]:
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
