"""Assembles a training run from plain values: models, data, rollout, objective, callbacks, trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import lightning as L
from lightning.pytorch.loggers import Logger, WandbLogger

from distill import (
    components,
    correction,
    data,
    distributed,
    features,
    instruments,
    loggers,
    mutual,
    objective,
    planning,
    schedule,
    sharding,
    startup,
    strategies,
    subnetwork,
    tasks,
)
from distill.cache.suit import suited
from distill.callbacks import deadline
from distill.callbacks.heartbeat import Heartbeat
from distill.callbacks.interrupt import Interrupt
from distill.callbacks.metrics import Clock, Metrics
from distill.callbacks.progress import ProgressReport
from distill.callbacks.rollouts import timed
from distill.correction import Correction
from distill.data.base import Dataset, Examples
from distill.data.window import RolloutFunction, WindowLoader
from distill.features import FeatureTerms
from distill.models import batch_statistics, build_images
from distill.models.base import Network
from distill.models.causal_lm import CausalLM
from distill.models.image_classifier import ImageClassifier
from distill.module import DistillModule
from distill.mutual import Mutual
from distill.objective import Objective
from distill.rollouts import Rollout
from distill.rollouts.dataset import DatasetRollout
from distill.rollouts.decode import Sampling
from distill.rollouts.mixed import MixedRollout
from distill.rollouts.on_policy import OnPolicyRollout
from distill.rollouts.scheduled import ScheduledRollout
from distill.rollouts.speculative import Speculation, SpeculativeRollout
from distill.subnetwork import Subnetwork
from distill.teachers.base import Teacher
from distill.teachers.cached import CachedTeacher
from distill.teachers.cotrained import CotrainedTeacher
from distill.teachers.frozen import FrozenTeacher

log = logging.getLogger(__name__)
LOOKED_AT = 256
"""Rows whose tokens are compared with a cache's before the run begins, evenly over the data."""
T = TypeVar("T")
Context = Callable[[], AbstractContextManager[object]]


@dataclass
class Parts:
    """What comes from outside, and may be missing or broken."""

    lm: Network
    teacher: Teacher | None
    objective: Objective
    train_data: Examples
    eval_data: Examples
    extra: list[L.Callback]
    subnetwork: Subnetwork | None = None
    correction: Correction | None = None
    mutual: Mutual | None = None
    features: FeatureTerms | None = None

    @property
    def cotrained(self) -> dict[str, Any]:
        """The networks that are trained together with the student, by name."""
        return {} if self.mutual is None else dict(self.mutual.networks)

    @property
    def trained(self) -> dict[str, Any]:
        """Every model that is trained, by its place in the module and in checkpoints."""
        others = {f"cotrained.{number}": lm.model for number, lm in enumerate(self.cotrained.values())}
        return {"student": self.lm.model, **others}

    @property
    def of_text(self) -> tuple[CausalLM, Dataset]:
        """Student and training data where they are texts: nothing else is sampled, cached or extrapolated."""
        return cast(CausalLM, self.lm), cast(Dataset, self.train_data)

    @property
    def judge(self) -> Teacher | None:
        """What evaluations compare the student with, where there is such a thing."""
        return None if self.teacher is None else self.teacher.judge

    @property
    def density(self) -> float | None:
        """Share of the coordinates that train, where a mask says which."""
        return None if self.subnetwork is None else self.subnetwork.density


@dataclass
class Run:
    """What trains the parts."""

    module: DistillModule
    trainer: L.Trainer
    loader: WindowLoader
    metrics: Metrics
    interrupt: Interrupt


def load(config: dict[str, Any]) -> Parts:
    """Models, data and the user's callbacks. Nothing is written."""
    lm, teacher = build_models(config)
    trained = subnetwork.load(config["callbacks"]["update_mask"], lm)
    train_data, eval_data = build_data(config, lm, teacher)
    options = config["objective"]
    if isinstance(teacher, CachedTeacher):
        texts = cast(Dataset, train_data)
        every = range(0, len(texts), -(-len(texts) // LOOKED_AT))
        rows = DatasetRollout()([texts[index] for index in every], [0] * len(every), 0)
        teacher.check(texts.fingerprint(), data.ids(texts), rows)
        startup.check_cached_weights(config["teacher"]["path"], teacher)
        options = suited(teacher.made, options)
    extra = config["callbacks"]["extra"].items()
    callbacks = [instruments.instantiate(f"callbacks.extra.{name}", component) for name, component in extra]
    # Where it has a schedule, each step takes its own.
    first = {"temperature": schedule.value(options["temperature"], config["trainer"]["max_steps"], 0)}
    task = tasks.of(config)
    reduced = correction.build(config, lm, teacher, train_data, task.rows(config), task.collate(lm))
    together = mutual.build(config, teacher.networks) if isinstance(teacher, CotrainedTeacher) else None
    watched = features.build(config["adm"], lm, teacher)
    made = objective.build(options | first)
    return Parts(lm, teacher, made, train_data, eval_data, callbacks, trained, reduced, together, watched)


def assemble(config: dict[str, Any], run_dir: Path, parts: Parts, wandb: WandbLogger | None) -> Run:
    """Builds the run described by a validated configuration, in an open run directory; nothing is trained yet."""
    lm, clock = parts.lm, Clock()
    metrics = Metrics(config["trainer"]["log_every_n_steps"], clock)
    progress = ProgressReport(config["logger"]["progress"], lambda: metrics.latest)
    module = _module(config, parts)
    by_layer = planning.agreed_gather(config, lm.model) == "layers"
    weights = sharding.by_layer if by_layer else sharding.whole

    def autocast() -> AbstractContextManager[object]:
        return trainer.precision_plugin.forward_context()

    def inference() -> AbstractContextManager[object]:
        # Rollouts and evaluations run outside training_step: what surrounds it they enter by themselves.
        stack = ExitStack()
        stack.enter_context(autocast())
        stack.enter_context(weights(*parts.trained.values()))
        return stack

    text, texts = parts.of_text
    written = instruments.rollouts(config, run_dir, text)
    rollout = timed(build_rollout(config, parts, partial(progress.activity, "rollout"), inference), clock, written)
    loader = build_loader(config, parts, rollout, lambda: trainer.global_step)
    state = 0 if config["callbacks"]["checkpoint"] is None else sum(map(deadline.state_bytes, parts.trained.values()))
    limit = deadline.of_run(config["trainer"]["max_time"], state)
    interrupt, heartbeat = Interrupt(limit), Heartbeat(config["trainer"]["timeout"])
    judged = (text, parts.judge, texts)
    looking = instruments.mapping(config, run_dir, (parts.features, parts.teacher, parts.eval_data), inference)
    moving = instruments.extrapolating(config, run_dir, judged, progress, inference, limit)
    confining = instruments.confining(config, run_dir, parts.subnetwork)
    measured = lm, parts.judge, parts.eval_data, parts.cotrained
    measuring = instruments.measuring(config, run_dir, measured, progress, inference)
    measuring += instruments.varying(config, (lm, parts.teacher, parts.subnetwork), loader, autocast, by_layer)
    saving = instruments.saving(config, run_dir, lm, metrics)
    # The signals are taken over from Lightning before the evaluation at the start.
    watching = [*moving, *confining, *measuring, *looking, *written]
    callbacks = [heartbeat, interrupt, *watching, *parts.extra, metrics, progress, *saving]
    trainer = build_trainer(config, callbacks, loggers.build(config, run_dir, wandb), loader.micro_batches, parts)
    return Run(module, trainer, loader, metrics, interrupt)


def _module(config: dict[str, Any], parts: Parts) -> DistillModule:
    plan = config["optimizer"], config["trainer"]["max_steps"], config["seed"], parts.density, schedule.of_run(config)
    besides = parts.correction, parts.mutual, parts.features
    return DistillModule(parts.lm, parts.teacher, parts.objective, *plan, *besides)


def build_models(config: dict[str, Any]) -> tuple[Network, Teacher | None]:
    """The student, and the teacher when the recipe has one (refused if its tokenizer, or its classes, differ)."""
    task = tasks.of(config)
    lm = task.build(config["student"], seed=config["seed"], key="student", source=config["data"])
    rows = max(1, config["data"]["batch_size"] // distributed.world_size())
    batch_statistics.check(lm, rows, config["trainer"]["micro_batch_size"])
    teacher = task.teacher(config, lm)
    together = teacher.networks.values() if isinstance(teacher, CotrainedTeacher) else ()
    for network in together:
        if isinstance(network, ImageClassifier):
            build_images.prepare(network, mutual.keeps_statistics(config))
        batch_statistics.check(network, rows, config["trainer"]["micro_batch_size"])
    for trained in (lm, *together) if strategies.trains_in_bf16(config["trainer"]) else ():
        strategies.check_bf16(config["trainer"], trained.model)
        # Before θ₀ is saved: rounding to the training dtype is not an update. Buffers keep theirs, as they do when the
        # export is loaded: rotary frequencies in bf16 would put late positions elsewhere.
        for parameter in trained.model.parameters():
            parameter.data = parameter.data.bfloat16()
    return lm, teacher


def build_data(config: dict[str, Any], lm: Network, teacher: Teacher | None = None) -> tuple[Examples, Examples]:
    """Training and held-out examples, in the form that the student reads."""
    return tasks.of(config).data(config, lm, teacher)


def build_loader(
    config: dict[str, Any], parts: Parts, rollout: RolloutFunction, next_step: Callable[[], int]
) -> WindowLoader:
    """The micro-batches of the steps from ``next_step()`` to the last."""
    return WindowLoader(
        parts.train_data,
        rollout,
        seed=config["seed"],
        batch_size=config["data"]["batch_size"],
        samples_per_prompt=config["rollout"]["samples_per_prompt"],
        micro_batch_size=config["trainer"]["micro_batch_size"],
        max_steps=config["trainer"]["max_steps"],
        collate=tasks.of(config).collate(parts.lm),
        next_step=next_step,
    )


def build_rollout(
    config: dict[str, Any], parts: Parts, on_progress: Callable[[int], None], inference: Context
) -> RolloutFunction:
    """The source of each optimizer step's sequences; ``inference`` surrounds what the models generate."""
    options = config["rollout"]
    if options["kind"] == "dataset":
        return tasks.of(config).rows(config)
    common = (config["seed"], options["batch_size"], on_progress, inference)
    lm, _ = parts.of_text
    if options["kind"] == "speculative" and options["accept_top_k"] >= lm.vocab_size:
        log.warning("rollout.accept_top_k covers all %d tokens: nothing is ever replaced", lm.vocab_size)

    def make(temperature: float) -> Rollout:
        sampling = Sampling(temperature, options["top_p"], options["top_k"], options["max_new_tokens"])
        if options["kind"] == "on_policy":
            return OnPolicyRollout(lm, sampling, *common)
        if options["kind"] == "custom":
            names = ("seed", "batch_size", "on_progress", "context")
            given = dict(zip(names, common, strict=True), student=lm, teacher=parts.judge, sampling=sampling)
            own: Rollout = components.make("rollout.custom", options["custom"], **given)
            return own
        replacing = Sampling(options["teacher_temperature"], options["teacher_top_p"])
        speculation = Speculation(sampling, replacing, options["draft_length"], options["accept_top_k"])
        return SpeculativeRollout(lm, _live(parts.teacher).lm, speculation, *common)

    steps, temperature, fraction = config["trainer"]["max_steps"], options["temperature"], options["on_policy_fraction"]
    changing = isinstance(temperature, dict)
    sampled = ScheduledRollout(make, schedule.curve(temperature, steps)) if changing else make(temperature)
    if schedule.lowest(fraction) == 1:
        return sampled
    return MixedRollout(DatasetRollout(), sampled, config["seed"], schedule.curve(fraction, steps))


def _live(teacher: Teacher | None) -> FrozenTeacher:
    assert isinstance(teacher, FrozenTeacher), "configurations without one are refused"
    return teacher


def build_trainer(
    config: dict[str, Any], callbacks: list[L.Callback], loggers: list[Logger], micro_batches: int, parts: Parts
) -> L.Trainer:
    """Lightning's trainer; several processes come from a launcher (torchrun, srun), never from Lightning."""
    options = config["trainer"]
    return L.Trainer(
        **strategies.build(options, *parts.trained.values()),
        # bf16 weights are the student's own (build_models); Lightning would round the batch's log-probabilities too.
        precision="32-true" if strategies.trains_in_bf16(options) else options["precision"],
        max_steps=options["max_steps"],
        max_epochs=-1,
        accumulate_grad_batches=micro_batches,
        gradient_clip_val=options["gradient_clip_val"],
        deterministic=options["deterministic"],
        logger=loggers,
        callbacks=callbacks,
        enable_checkpointing=config["callbacks"]["checkpoint"] is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
