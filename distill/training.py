"""Assembles a training run from plain values: models, data, rollout, objective, callbacks, loggers, trainer."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy

from distill import data, distributed, models, rundir, startup
from distill.callbacks.checkpoint import SaveCheckpoint
from distill.callbacks.evaluation import Evaluation
from distill.callbacks.interrupt import Interrupt
from distill.callbacks.jsonl import JsonlLogger
from distill.callbacks.metrics import Clock, Metrics
from distill.callbacks.progress import ProgressReport
from distill.callbacks.sparsity import UpdateSparsity
from distill.config.redact import redact
from distill.data.base import Dataset
from distill.data.window import RolloutFunction, WindowLoader
from distill.evaluation import evaluate
from distill.models.causal_lm import CausalLM
from distill.module import DistillModule
from distill.objective import Objective
from distill.rollouts.dataset import DatasetRollout
from distill.rollouts.decode import Sampling
from distill.rollouts.mixed import MixedRollout
from distill.rollouts.on_policy import OnPolicyRollout
from distill.teachers.frozen import FrozenTeacher
from distill.types import Row, Sample

T = TypeVar("T")
Precision = Callable[[], AbstractContextManager[None]]


@dataclass
class Run:
    """Everything one training run consists of."""

    lm: CausalLM
    teacher: FrozenTeacher | None
    train_data: Dataset
    eval_data: Dataset
    module: DistillModule
    trainer: L.Trainer
    loader: WindowLoader
    metrics: Metrics
    interrupt: Interrupt


def assemble(config: dict[str, Any], run_dir: Path) -> Run:
    """Builds the run described by a validated configuration; nothing is trained yet."""
    seed = config["seed"]
    lm, teacher = build_models(config)
    train_data, eval_data = build_data(config, lm)
    clock = Clock()
    metrics = Metrics(config["trainer"]["log_every_n_steps"], clock)
    progress = ProgressReport(config["logger"]["progress"], lambda: metrics.latest)
    objective = Objective(**config["objective"])
    max_steps = config["trainer"]["max_steps"]
    module = DistillModule(lm, teacher, objective, config["optimizer"], max_steps, seed)
    # Rollouts and evaluations run outside training_step, so they enter the trainer's autocast by themselves.
    precision: Precision = lambda: trainer.precision_plugin.forward_context()  # noqa: E731
    rollout = _timed(build_rollout(config, lm, partial(progress.activity, "rollout")), clock, precision)
    loader = WindowLoader(
        train_data,
        rollout,
        seed=seed,
        batch_size=config["data"]["batch_size"],
        samples_per_prompt=config["rollout"]["samples_per_prompt"],
        micro_batch_size=config["trainer"]["micro_batch_size"],
        max_steps=max_steps,
        pad_id=lm.pad_id,
        next_step=lambda: trainer.global_step,
    )
    interrupt = Interrupt()
    measured = _measurements(config, run_dir, lm, teacher, eval_data, progress, precision)
    callbacks = [*measured, interrupt, metrics, progress, *_saving(config, run_dir)]
    trainer = build_trainer(config, callbacks, build_loggers(config, run_dir), loader.micro_batches)
    return Run(lm, teacher, train_data, eval_data, module, trainer, loader, metrics, interrupt)


def build_models(config: dict[str, Any]) -> tuple[CausalLM, FrozenTeacher | None]:
    """The student, and the frozen teacher when the recipe has one (refused if its tokenizer differs)."""
    lm = models.build(config["student"], seed=config["seed"], key="student")
    if config["trainer"]["precision"] == "bf16-true":
        # Before θ₀ is saved: rounding to the training dtype is not an update.
        lm.model.bfloat16()
    if config["teacher"]["kind"] == "none":
        return lm, None
    teacher = models.build(config["teacher"], seed=config["seed"], key="teacher")
    models.share_vocabulary(lm, teacher)
    return lm, FrozenTeacher(teacher)


def build_data(config: dict[str, Any], lm: CausalLM) -> tuple[Dataset, Dataset]:
    """Training and held-out examples, tokenised for the student."""
    return data.build(config["data"], lm.tokenizer, seed=config["seed"], max_positions=lm.max_positions)


def build_rollout(config: dict[str, Any], lm: CausalLM, on_progress: Callable[[int], None]) -> RolloutFunction:
    """The source of each optimizer step's sequences."""
    options = config["rollout"]
    if options["kind"] == "dataset":
        return DatasetRollout()
    sampling = Sampling(options["temperature"], options["top_p"], options["top_k"], options["max_new_tokens"])
    on_policy = OnPolicyRollout(lm, sampling, config["seed"], options["batch_size"], on_progress)
    if options["on_policy_fraction"] == 1:
        return on_policy
    return MixedRollout(DatasetRollout(), on_policy, config["seed"], options["on_policy_fraction"])


def build_trainer(
    config: dict[str, Any], callbacks: list[L.Callback], loggers: list[Logger], micro_batches: int
) -> L.Trainer:
    """Lightning's trainer; several processes come from a launcher (torchrun, srun), never from Lightning."""
    options = config["trainer"]
    world = distributed.world_size()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    strategy: Strategy | str = "auto"
    if options["strategy"] == "ddp":
        strategy = DDPStrategy(process_group_backend="gloo" if options["accelerator"] == "cpu" else "nccl")
    return L.Trainer(
        accelerator=options["accelerator"],
        devices=local if options["strategy"] == "ddp" else 1,
        num_nodes=world // local,
        strategy=strategy,
        precision=options["precision"],
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


def build_loggers(config: dict[str, Any], run_dir: Path) -> list[Logger]:
    """``metrics.jsonl`` always; W&B, TensorBoard and CSV when asked for. Secrets are masked before they are logged."""
    options = redact(config["logger"])
    loggers: list[Logger] = [JsonlLogger(run_dir)]
    if options["tensorboard"]:
        loggers.append(TensorBoardLogger(run_dir, name="tensorboard", version=""))
    if options["csv"]:
        loggers.append(CSVLogger(run_dir, name="csv", version=""))
    if options["wandb"] != "off":
        loggers.append(
            WandbLogger(
                save_dir=run_dir,
                offline=options["wandb"] == "offline",
                id=rundir.wandb_id(run_dir),
                resume="allow",
                config=redact(config),
                **{key: options[key] for key in ("project", "entity", "group", "name", "tags")},
            )
        )
    return loggers


def close_loggers(trainer: L.Trainer, status: int) -> None:
    """Ends the W&B run, which Lightning leaves open: the next run of a sweep needs one of its own."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            logger.experiment.finish(exit_code=status)


def _measurements(
    config: dict[str, Any],
    run_dir: Path,
    lm: CausalLM,
    teacher: FrozenTeacher | None,
    eval_data: Dataset,
    progress: ProgressReport,
    precision: Precision,
) -> list[L.Callback]:
    options, found = config["callbacks"], list[L.Callback]()
    if options["sparsity"] is not None:
        found.append(UpdateSparsity(run_dir / "source", options["sparsity"]["every_n_steps"], run_dir / "sparsity"))
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
                _within(precision, partial(evaluate, lm, teacher, eval_data, keep_samples=keep, **shared)),
                _within(precision, partial(startup.measure, lm, teacher, eval_data, _identical(config), shared)),
                run_dir / "samples.jsonl",
                options["evaluation"]["every_n_steps"],
            )
        )
    found += [instantiate(component) for component in options["extra"].values()]
    return found


def _identical(config: dict[str, Any]) -> bool:
    """True where teacher and student start from the same weights."""
    student, teacher = config["student"], config["teacher"]
    return teacher["kind"] != "none" and all(teacher[key] == student[key] for key in ("path", "config", "revision"))


def _saving(config: dict[str, Any], run_dir: Path) -> list[L.Callback]:
    options = config["callbacks"]["checkpoint"]
    return [] if options is None else [SaveCheckpoint(run_dir, options["every_n_steps"], options["keep_last"])]


def instantiate(component: dict[str, Any]) -> Any:
    """Builds ``{"_target_": "module.Class", **arguments}``; the target has passed the allow-list."""
    arguments = dict(component)
    module, _, name = arguments.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), name)(**arguments)


def _within(context: Precision, function: Callable[[], T]) -> Callable[[], T]:
    def inside() -> T:
        with context():
            return function()

    return inside


def _timed(rollout: RolloutFunction, clock: Clock, precision: Precision) -> RolloutFunction:
    def timed(samples: list[Sample], copies: list[int], step: int) -> list[Row]:
        began = time.perf_counter()
        with precision():
            rows = rollout(samples, copies, step)
        clock.add(time.perf_counter() - began)
        return rows

    return timed
