"""Combinations of keys that make no sense together, each refused with what to set instead.

A check yields a Problem; the validator reports all of them in one list, with the schema's own errors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from distill.config import checks_images, schema
from distill.config.checks_adm import adm
from distill.config.checks_custom import custom
from distill.config.checks_data import data
from distill.config.checks_extrapolation import extrapolation
from distill.config.checks_online import KIND, online
from distill.config.checks_reduction import variance_reduction
from distill.config.checks_rollout import batch, rollout, sampled_token, scheduled
from distill.config.checks_stages import Check, of_each
from distill.config.checks_task import suited
from distill.config.checks_teacher import model, placement, routing, teacher
from distill.config.checks_variance import gradient_variance
from distill.config.problem import Problem
from distill.config.rundir import unusable
from distill.config.world import world_size

TORCHRUN = "torchrun --standalone --nproc-per-node 2 -m distill train trainer=ddp_cpu hydra.run.dir=runs/NAME"
PER_JOB = "hydra/launcher=submitit_slurm hydra.launcher.tasks_per_node=2; or, job by job, torchrun … -m distill train"


def train(config: schema.TrainConfig) -> Iterator[Problem]:
    """All checks of ``distill train``: the run itself, and the processes it is started with."""
    yield from job(config, None)


def job(config: schema.TrainConfig, ranks: int | None) -> Iterator[Problem]:
    """All checks of one job of a sweep, which the sweep's launcher starts as ``ranks`` processes."""
    yield from run(config, lambda one: launch(one, ranks))


def run(config: schema.TrainConfig, also: Check = lambda one: iter(())) -> Iterator[Problem]:
    """What can be said of a run before it is launched, wherever that will be, and what ``also`` says; of every stage
    where there are several."""
    yield from of_each(config, lambda one: chain(_run(one), also(one)))


def _run(config: schema.TrainConfig) -> Iterator[Problem]:
    if impossible := list(suited(config)):
        # The rest would be told of a run that no other key can mend.
        yield from impossible
        return
    yield from data(config.data)
    if config.eval_data is not None:
        yield from data(config.eval_data, "eval_data")
    words = config.task.name not in checks_images.SOURCES
    yield from model("student", config.student, words)
    yield from teacher(config.teacher, words)
    for check in CHECKS:
        yield from check(config)


def evaluate(config: schema.EvalConfig) -> Iterator[Problem]:
    """All checks of ``distill eval``."""
    if config.data is not None:
        yield from data(config.data)
    if config.teacher is not None:
        yield from teacher(config.teacher, config.task is None or config.task.name not in checks_images.SOURCES)
    yield from output(config)


def output(config: schema.EvalConfig | schema.ReportConfig) -> Iterator[Problem]:
    """The file ``out`` can be written, before the work it is to hold is done."""
    if config.out is None:
        return
    out = Path(config.out)
    reason = f"{out} is a folder" if out.is_dir() else unusable(out.parent)
    if reason is not None:
        yield Problem(("out",), config.out, f"a file that can be written ({reason})")


def objective(config: schema.TrainConfig) -> Iterator[Problem]:
    part = config.objective
    if part.logit_weight == 0:
        return
    keys = ("objective.divergence", "objective.logit_weight")
    if part.divergence == "jsd" and not 0 < part.beta < 1:
        allowed = "strictly between 0 and 1 for 'jsd', which is 0 at both ends (for a KL: 'forward_kl', 'reverse_kl')"
        yield Problem(("objective.beta", *keys), part.beta, allowed)
    if part.divergence.startswith("skew_") and not 0 <= part.alpha < 1:
        allowed = f"at least 0 and below 1 for {part.divergence!r}, which vanishes at 1"
        yield Problem(("objective.alpha", *keys), part.alpha, allowed)
    if part.ratio_clip is not None and part.divergence != "sampled_token":
        allowed = "null unless objective.divergence is 'sampled_token'"
        yield Problem(("objective.ratio_clip", *keys), part.ratio_clip, allowed)


def weights(config: schema.TrainConfig) -> Iterator[Problem]:
    part = config.objective
    keys = ("objective.logit_weight", "objective.label_weight")
    if part.logit_weight == part.label_weight == 0:
        yield Problem(keys, 0.0, "above 0, or objective.label_weight must be: otherwise there is nothing to learn")
    elif part.logit_weight > 0 and config.teacher.kind == "none":
        allowed = "0 without a teacher (choose teacher=frozen, or objective=cross_entropy)"
        yield Problem(("objective.logit_weight", "teacher.kind"), part.logit_weight, allowed)
    elif config.variance_reduction is not None or config.adm is not None or config.teacher.kind == KIND:
        # Their teacher is asked for gradients, or features, or learns from the student.
        return
    elif part.logit_weight == 0 and config.teacher.kind != "none" and config.rollout.kind != "speculative":
        allowed = "'none' when objective.logit_weight is 0, as nothing would ask the teacher (choose teacher=none)"
        yield Problem(("teacher.kind", "objective.logit_weight"), config.teacher.kind, allowed)


def launch(config: schema.TrainConfig, job_ranks: int | None = None) -> Iterator[Problem]:
    """``job_ranks``: the processes that a sweep's launcher will start for this job."""
    strategy, size, ranks = config.trainer.strategy, config.data.batch_size, job_ranks or world_size()
    launched = "WORLD_SIZE" in os.environ if job_ranks is None else job_ranks > 1
    if strategy == "ddp" and not launched:
        how = f"the processes: {TORCHRUN}" if job_ranks is None else f"several processes per job: {PER_JOB}"
        allowed = f"'single' unless a launcher starts {how}"
        yield Problem(("trainer.strategy",), strategy, allowed)
    if strategy == "single" and ranks > 1:
        allowed = f"'ddp' or 'zero…' when a launcher starts {ranks} processes (choose trainer=ddp_cpu, ddp or zero2)"
        yield Problem(("trainer.strategy",), strategy, allowed)
    if size % ranks:
        yield Problem(("data.batch_size",), size, f"a multiple of the number of processes ({ranks})")


def attention(config: schema.TrainConfig) -> Iterator[Problem]:
    members = {f"teacher.members.{name}": member for name, member in config.teacher.members.items()}
    parts: dict[str, schema.Model] = {"student": config.student, "teacher": config.teacher, **members}
    for name, part in parts.items():
        chosen = part.attn_implementation
        if chosen == "flash_attention_2" and config.trainer.accelerator == "cpu":
            allowed = "'sdpa' or 'eager' with trainer.accelerator 'cpu'"
            yield Problem((f"{name}.attn_implementation", "trainer.accelerator"), chosen, allowed)


def optimizer(config: schema.TrainConfig) -> Iterator[Problem]:
    part = config.optimizer
    if part.momentum > 0 and part.name != "sgd":
        allowed = "0 unless optimizer.name is 'sgd' (adamw has optimizer.betas)"
        yield Problem(("optimizer.momentum", "optimizer.name"), part.momentum, allowed)
    if config.callbacks.optimizer_state is not None and part.name == "sgd" and part.momentum == 0:
        allowed = "above 0 with callbacks.optimizer_state: SGD without momentum keeps no moments"
        yield Problem(("optimizer.momentum", "optimizer.name", "callbacks.optimizer_state"), 0.0, allowed)


def subspace(config: schema.TrainConfig) -> Iterator[Problem]:
    part, section = config.callbacks.gradient_subspace, "callbacks.gradient_subspace"
    if part is None:
        return
    if config.student.lora is not None:
        allowed = "null with student.lora: an adapter is of low rank as it is"
        yield Problem((section, "student.lora"), part.model_dump(), allowed)
    if config.callbacks.update_mask is not None:
        allowed = "null with callbacks.update_mask: a projected gradient leaves the mask, and a masked one the subspace"
        yield Problem((section, "callbacks.update_mask"), part.model_dump(), allowed)
    if part.warmup_steps >= config.trainer.max_steps:
        allowed = f"below trainer.max_steps ({config.trainer.max_steps}): no step would be left to confine"
        yield Problem((f"{section}.warmup_steps", "trainer.max_steps"), part.warmup_steps, allowed)


def update_mask(config: schema.TrainConfig) -> Iterator[Problem]:
    part, section = config.callbacks.update_mask, "callbacks.update_mask"
    if part is None:
        return
    if part.path is None:
        yield Problem((f"{section}.path",), None, "a mask file (made by `distill mask`)")
    if config.student.lora is not None:
        allowed = f"null with {section}: a mask selects weights, and an adapter leaves them alone"
        yield Problem(("student.lora", section), config.student.lora.model_dump(), allowed)


def zero(config: schema.TrainConfig) -> Iterator[Problem]:
    part = config.trainer
    if part.offload and part.strategy != "zero3":
        yield Problem(("trainer.offload", "trainer.strategy"), True, "false unless trainer.strategy is 'zero3'")
    if part.precision == "bf16-true" and part.strategy.startswith("zero"):
        allowed = "'32-true', or 'bf16-mixed' for bf16 weights with fp32 masters, under ZeRO"
        yield Problem(("trainer.precision", "trainer.strategy"), part.precision, allowed)


def retention(config: schema.TrainConfig) -> Iterator[Problem]:
    part, measured = config.callbacks.checkpoint, config.callbacks.evaluation
    if part is None:
        return
    section = "callbacks.checkpoint"
    if part.keep_best > 0 and part.monitor is None:
        allowed = f"a metric such as 'eval/accuracy' with {section}.keep_best"
        yield Problem((f"{section}.monitor", f"{section}.keep_best"), None, allowed)
    if (milestone := part.keep_every_n_steps) is not None and milestone % part.every_n_steps:
        allowed = f"null or a multiple of {section}.every_n_steps ({part.every_n_steps})"
        yield Problem((f"{section}.keep_every_n_steps", f"{section}.every_n_steps"), milestone, allowed)
    if part.monitor is None or not part.monitor.startswith("eval/"):
        return
    every = None if measured is None else measured.every_n_steps
    if every is None or (every % part.every_n_steps and part.every_n_steps % every):
        allowed = f"a divisor or a multiple of {section}.every_n_steps ({part.every_n_steps}): a checkpoint has the "
        allowed += f"{part.monitor!r} of its own step only"
        keys = ("callbacks.evaluation.every_n_steps", f"{section}.monitor", f"{section}.every_n_steps")
        yield Problem(keys, every, allowed)


def resume(config: schema.TrainConfig) -> Iterator[Problem]:
    if config.resume not in (None, "auto") and not Path(str(config.resume)).is_dir():
        allowed = "null, 'auto', or the folder of an existing run or checkpoint"
        yield Problem(("resume",), config.resume, allowed)


CHECKS = (
    *(checks_images.task, objective, weights, rollout, sampled_token, scheduled, batch, attention, optimizer),
    *(
        custom,
        subspace,
        update_mask,
        extrapolation,
        gradient_variance,
        online,
        variance_reduction,
        adm,
        zero,
        placement,
        routing,
        retention,
        resume,
    ),
)
"""All checks of a run that take the whole configuration."""
