"""``distill eval``: accuracy of a checkpoint on held-out prompts (greedy) or images, and its KL to a teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from distill import tasks
from distill.config import stages, targets
from distill.config.schema import Data, EvalConfig, Model, Rollout, Task, Teacher
from distill.errors import UserError
from distill.quiet import quiet_libraries
from distill.teachers import base

SECTIONS = ("task", "data", "teacher", "rollout")
"""What an evaluation reads of a run's configuration."""
DEFAULTS = dict(zip(SECTIONS, (part.model_dump() for part in (Task(), Data(), Teacher(), Rollout())), strict=True))


def run(config: dict[str, Any], run_dir: Path) -> int:
    """Prints the metrics as JSON, and writes them with the rollouts to ``out`` when it is set."""
    quiet_libraries()
    checkpoint = Path(config["checkpoint"])
    folder, recorded = _open(checkpoint)
    settings = {name: config[name] or recorded.get(name) or DEFAULTS[name] for name in SECTIONS}
    settings["seed"] = config["seed"]
    task, source, rollout = tasks.of(settings), settings["data"], settings["rollout"]
    student = _student(task, folder, settings)
    teacher = _teacher(task, settings, student)
    examples = task.held_out(settings, student, teacher)
    result = task.evaluate(
        student,
        teacher,
        examples,
        max_new_tokens=rollout["max_new_tokens"],
        batch_size=rollout["batch_size"],
        limit=source["eval_size"],
        seed=config["seed"],
    )
    metrics = {"examples": min(source["eval_size"], len(examples)), **result.metrics()}
    print(json.dumps(metrics, indent=2))
    if config["out"] is not None:
        content = {"checkpoint": str(checkpoint), **metrics, "samples": result.samples}
        out = Path(config["out"])
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
    return 0


def _open(checkpoint: Path) -> tuple[Path, dict[str, Any]]:
    """The weights' folder, and the configuration of the run when ``checkpoint`` is a run directory."""
    if (checkpoint / "config.json").is_file() and any(checkpoint.glob("*.safetensors")):
        return checkpoint, {}
    recorded = checkpoint / "config.yaml"
    if recorded.is_file() and (checkpoint / "model" / "config.json").is_file():
        return checkpoint / "model", _recorded(recorded)
    allowed = "a finished run directory (with model/) or a Hugging Face folder (with config.json and safetensors)"
    raise UserError("checkpoint", str(checkpoint), allowed)


def _recorded(file: Path) -> dict[str, Any]:
    """The sections of the run's configuration that an evaluation takes over, checked as if they were given.

    Of a run of several stages they are those of the last, of one with held-out examples of its own, these are the data.
    """
    try:
        content = stages.recorded(yaml.safe_load(file.read_text(encoding="utf-8")))[-1]
        content["data"] = content.get("eval_data") or content.get("data")
        given = {name: content.get(name) for name in SECTIONS}
        sections = EvalConfig(checkpoint="", **given)
    except (ValueError, AttributeError, yaml.YAMLError) as error:
        allowed = "a run directory with the config.yaml that the run wrote (or its model/ alone)"
        raise UserError("checkpoint", str(file), allowed) from error
    # A run directory may come from somebody else: what it imports is what a configuration may import.
    for refused in targets.refused(given, targets.allowed()):
        raise refused
    return sections.model_dump(by_alias=True)


def _student(task: tasks.Task, folder: Path, settings: dict[str, Any]) -> Any:
    spec = Model(path=str(folder)).model_dump()
    try:
        return task.build(spec, seed=settings["seed"], key="checkpoint", source=settings["data"])
    except UserError as error:
        if error.key.startswith("data."):
            raise
        # Here a model is one key, not a section of them.
        fits = error.key in ("checkpoint.path", "checkpoint.tokenizer")
        allowed = error.allowed if fits else "a model that needs no Python code of its own"
        raise UserError("checkpoint", error.value if fits else str(folder), allowed) from error


def _teacher(task: tasks.Task, settings: dict[str, Any], student: Any) -> base.Teacher | None:
    spec = settings["teacher"]
    # A cache knows the training rows alone, and need not be there any more; what was trained together with the student
    # is not what it was before.
    if spec["kind"] in ("cached", "cotrained"):
        return None
    found = task.teacher(settings | {"teacher": spec | {"placement": "replicated"}}, student)
    return None if found is None else found.judge
