"""What is checked and measured once, before the first step.

The GPUs, the checkpoint to resume from, the teacher's score, the mass that padding rows hide, and KL(p‖p) = 0.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from distill import data, distributed, models, schedule, sharding, strategies, universal
from distill.analysis.fingerprint import of_folder
from distill.analysis.source import Folder
from distill.cache.suit import suited
from distill.callbacks.extrapolation import check_examples
from distill.checkpoint import Checkpoint
from distill.data.base import Dataset
from distill.data.briefing import Mapped, Needs, told, untold
from distill.errors import RunError, UserError
from distill.evaluation import Evaluation, evaluate
from distill.models import lora
from distill.models.causal_lm import CausalLM
from distill.models.locate import PACKAGE, locate
from distill.models.tokenizers import check_same
from distill.models.vocabulary import dropped_mass
from distill.module import ADAPTERS
from distill.planning import teaching
from distill.teachers.base import Teacher
from distill.teachers.cached import CachedTeacher
from distill.teachers.cotrained import CotrainedTeacher
from distill.teachers.frozen import FrozenTeacher
from distill.teachers.multi import MultiTeacher
from distill.teachers.self_taught import SelfTeacher
from distill.types import Batch, Row, collate

OWN_SETTINGS = {"adamw": ("betas", "eps"), "sgd": ("momentum",)}
"""Settings of each optimizer; the first is one that the others do not have."""
EXAMPLES = 4
IDENTITY_TOLERANCE = 1e-3
"""Nats per token. Float rounding gives 1e-7 in fp32 and up to 1e-4 in bf16; any misalignment gives far more."""


def check_devices(trainer: dict[str, Any]) -> None:
    """Refuses a run that asks for more GPUs than this machine shows, before anything is loaded.

    Raises:
        UserError: named ``trainer.accelerator``.
    """
    if not strategies.on_gpu(trainer):
        return
    single = trainer["strategy"] == "single"
    wanted = 1 if single else int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size()))
    found = torch.accelerator.device_count()
    if found < wanted:
        allowed = f"'cpu' (choose trainer=cpu or trainer=ddp_cpu) on a machine that shows {found} of {wanted} GPUs"
        raise UserError("trainer.accelerator", trainer["accelerator"], allowed)


def check_readable(config: dict[str, Any]) -> None:
    """Looks for all that a run reads, weights left where they are; the context of its models is not known here.

    Raises:
        UserError: something is not there, or does not fit the rest.
    """
    words, rollout = models.readable(config["student"], key="student"), config["rollout"]
    for key, part in teaching.parts(config["teacher"]).items():
        check_same(words, models.readable(part, key=key), key)
    fixed = rollout["kind"] == "dataset" or schedule.lowest(rollout["on_policy_fraction"]) < 1
    train, _ = data.build(
        config["data"],
        words,
        seed=config["seed"],
        max_positions=None,
        completions=fixed,
        needs=Needs.of(config["teacher"], None, 0),
        judging=config["eval_data"],
    )
    if config["callbacks"]["extrapolation"] is not None:
        check_examples(config["callbacks"]["extrapolation"]["examples"], len(train))
    if config["teacher"]["kind"] == "cached":
        teacher = CachedTeacher(config["teacher"], words)
        teacher.check(train.fingerprint(), data.ids(train), [])
        suited(teacher.made, config["objective"])


def check_cached_weights(path: str | None, teacher: CachedTeacher) -> None:
    """Refuses a cache of other weights than those at ``path``, where it is a folder of safetensors on this machine.

    Raises:
        UserError: named ``teacher.cache``.
    """
    if path is None or not (path.startswith(PACKAGE) or Path(path).expanduser().exists()):
        return
    found = Path(locate(path, key="teacher.path"))
    if not list(found.glob("*.safetensors")) or list(found.glob("adapter_*")):
        return
    with Folder(found, "teacher.path") as folder:
        there = of_folder(folder)
    if there != teacher.made.weights:
        allowed = f"a cache of the weights that are at {path} now (make it anew, or teacher.path=null if they are gone)"
        raise UserError("teacher.cache", str(teacher.reader.folder), allowed)


def check_resumable(
    resume: Checkpoint, trained: Mapping[str, nn.Module], mask: str | None, config: dict[str, Any]
) -> None:
    """Refuses a checkpoint of another student (or of others beside it: ``trained`` are all, by their place in the
    module), mask (by its checksum), optimizer or learning rate, or of a later step than the run is to reach.

    Raises:
        UserError: named ``resume`` or the key that differs.
    """
    steps = config["trainer"]["max_steps"]
    if resume.step > steps:
        raise UserError("trainer.max_steps", steps, f"at least the {resume.step} steps of {resume.folder}")
    state = universal.load(resume.state)
    theirs = {name.removeprefix("student."): shape for name, shape in state.shapes.items()}
    ours = {
        f"{place}.{name}".removeprefix("student."): tuple(tensor.shape)
        for place, model in trained.items()
        for name, tensor in model.state_dict().items()
    }
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            allowed = f"a checkpoint of this student ({name!r} is {theirs.get(name)} there, {ours.get(name)} here)"
            raise UserError("resume", str(resume.folder), allowed)
    before = state.client["callbacks"].get("UpdateMask", {}).get("mask")
    if mask != before:
        allowed = "null, as in" if before is None else f"the mask whose checksum begins with {before[:12]}, as in"
        section = config["callbacks"]["update_mask"]
        raise UserError("callbacks.update_mask", section, f"{allowed} {resume.folder}")
    _check_optimizer(state.groups[0].settings, config["optimizer"], resume)
    # Older checkpoints do not say.
    for (key, alpha), before in zip(_alphas(trained, config), state.client.get(ADAPTERS, ()), strict=False):
        if alpha != before:
            raise UserError(key, alpha, f"{before}, as in {resume.folder}")
    if config["online"] is not None:
        names = [*config["teacher"]["members"]] or ["teacher"]
        if (named := state.client.get("online", names)) != names:
            raise UserError("teacher.members", names, f"{named}, in this order, as in {resume.folder}")
        asked, before = config["online"]["lr"], state.groups[-1].settings["initial_lr"]
        if before != (config["optimizer"]["lr"] if asked is None else asked):
            raise UserError("online.lr", asked, f"{before} as in {resume.folder}, which brings it along")


def _alphas(trained: Mapping[str, nn.Module], config: dict[str, Any]) -> list[tuple[str, float | None]]:
    """Key and value of what scales each network's adapter, the student's first."""
    others = [f"teacher.members.{name}" for name in config["teacher"]["members"]] or ["teacher"]
    keys = [f"{name}.lora.alpha" for name in ("student", *others)]
    return [(key, lora.alpha(model)) for key, model in zip(keys, trained.values(), strict=False)]


def _check_optimizer(saved: dict[str, Any], options: dict[str, Any], resume: Checkpoint) -> None:
    """The optimizer's state brings its settings along: others, asked for on resume, would be ignored in silence."""
    name = options["name"]
    if OWN_SETTINGS[name][0] not in saved:
        raise UserError("optimizer.name", name, f"the optimizer of {resume.folder}")
    for key in ("lr", "weight_decay", *OWN_SETTINGS[name]):
        before, asked = saved["initial_lr" if key == "lr" else key], options[key]
        if torch.tensor(before).tolist() != torch.tensor(asked).tolist():
            raise UserError(f"optimizer.{key}", asked, f"{before} as in {resume.folder}, which brings it along")


def measure(
    student: CausalLM, teacher: Teacher | None, held_out: Dataset, identical: bool, options: dict[str, Any]
) -> dict[str, float]:
    """Metrics of step 0. ``identical`` says that teacher and student are the same weights and read the same.

    Keys: ``eval/teacher_accuracy`` (of a single teacher, with what it alone is told; with a verifier),
    ``eval/dropped_mass/student`` and ``…/teacher`` (``…/NAME`` of several) where the model has more rows than the
    tokenizer has tokens.

    Raises:
        RunError: the KL between a model and itself is not zero, so losses cannot be trusted.
    """
    batch = _batch(student, held_out)
    found = _dropped("student", student, batch)
    if isinstance(teacher, MultiTeacher):
        for name, member in teacher.members.items():
            found |= _dropped(name, member.lm, batch)
    if isinstance(teacher, CotrainedTeacher):
        for name, network in teacher.networks.items():
            found |= _dropped(name, cast(CausalLM, network), batch)
    if isinstance(teacher, SelfTeacher):
        few = options | {"limit": EXAMPLES}
        _check_identity(evaluate(student, teacher, Mapped(held_out, untold), keep_samples=0, **few))
        return found | _accuracy(evaluate(student, None, Mapped(held_out, told), keep_samples=0, **options))
    if not isinstance(teacher, FrozenTeacher):
        return found
    with sharding.by_layer(teacher.lm.model):
        found |= _dropped("teacher", teacher.lm, batch)
    # The same weights have the same score: one evaluation tells it and the KL between the two models.
    asked, judge = (student, teacher) if identical else (teacher.lm, None)
    with nullcontext() if identical else sharding.by_layer(teacher.lm.model):
        score = evaluate(asked, judge, Mapped(held_out, told), keep_samples=0, **options)
    if identical:
        _check_identity(score)
    return found | _accuracy(score)


def _check_identity(score: Evaluation) -> None:
    if score.kl is not None and not score.kl < IDENTITY_TOLERANCE:
        raise RunError(f"student and teacher are the same weights, but their KL is {score.kl:.2g} nats per token.")


def _accuracy(score: Evaluation) -> dict[str, float]:
    return {} if score.accuracy is None else {"eval/teacher_accuracy": score.accuracy}


def _dropped(name: str, lm: CausalLM, batch: Batch) -> dict[str, float]:
    if lm.padded_vocab_size == lm.vocab_size:
        return {}
    device = next(lm.model.parameters()).device
    moved = batch.to(device)
    return {f"eval/dropped_mass/{name}": dropped_mass(lm, moved.input_ids, moved.attention_mask)}


def _batch(lm: CausalLM, held_out: Dataset) -> Batch:
    prompts = [held_out[index].prompt_ids for index in range(min(EXAMPLES, len(held_out)))]
    rows = [Row(index, torch.tensor(ids), torch.zeros(len(ids), dtype=torch.bool)) for index, ids in enumerate(prompts)]
    return collate(rows, lm.pad_id, window_positions=0, on_policy=False)
