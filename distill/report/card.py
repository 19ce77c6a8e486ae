"""The model card of an exported student: recipe, teacher, data and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill.report.settings import recipe
from distill.report.stages import Row
from distill.report.summary import percent

TEMPLATE = """---
library_name: transformers
pipeline_tag: {pipeline}
tags:
- distill
- {recipe}
---
# {name}

Trained with `distill` by the recipe `{recipe}`.

| | |
|---|---|
| student | {student} |
| teacher | {teacher} |
| data | {data} |
| rollout | {rollout} |
| objective | {objective} |
| optimizer | {optimizer} |
| steps | {steps} of {batch_size} {units} |
| seed | {seed} |

## Measured

On {held_out} {asked}:

{results}
"""
WORDS = {
    "causal_lm": ("text-generation", "sequences", "held-out prompts, greedy decoding"),
    "image_classification": ("image-classification", "images", "held-out images"),
    "semantic_segmentation": ("image-segmentation", "images", "all pixels of held-out images"),
}
"""By task: what the hub calls it, what a step is made of, and what the numbers are of."""
STAGES = """
## Stages

The last of these runs made this model, and the numbers above are its own; each began with the student of the one
before.

| stage | steps | accuracy | sparsity of its update (bf16, 1e-5) |
|---|--:|--:|--:|
"""
MEASURED = {
    "eval/accuracy": "accuracy",
    "eval/teacher_accuracy": "the teacher's accuracy",
    "eval/ece": "expected calibration error (15 bins)",
    "eval/miou": "mean over classes of intersection over union",
    "eval/teacher_miou": "the teacher's",
    "eval/agreement": "share of images (pixels) on which student and teacher agree",
    "eval/reverse_kl": "KL(student ‖ teacher) per sampled token, image or pixel, nats",
    "sparsity/bf16/1e-5": "update sparsity (bf16, tolerance 1e-5)",
    "update/relative_norm": "relative norm of the update (bf16)",
}


def render(
    config: Mapping[str, Any], records: Sequence[Mapping[str, float]], data: Mapping[str, Any], held_out: int
) -> str:
    """Markdown with a Hugging Face header, from the records of ``metrics.jsonl`` and what the data says of itself.

    ``held_out`` is the number of prompts, or images, the accuracies were measured on.
    """
    pipeline, units, asked = WORDS[config["task"]["name"]]
    return TEMPLATE.format(
        pipeline=pipeline,
        units=units,
        asked=asked,
        name=config["run_name"],
        recipe=recipe(config),
        student=_model(config["student"]),
        teacher=teacher(config["teacher"]),
        data=", ".join(f"{key}: {value}" for key, value in data.items()),
        rollout=config["rollout"]["kind"],
        objective=_objective(config["objective"]),
        optimizer=f"{config['optimizer']['name']}, lr {config['optimizer']['lr']:g}",
        steps=config["trainer"]["max_steps"],
        batch_size=config["data"]["batch_size"],
        seed=config["seed"],
        held_out=held_out,
        results=_results(records),
    )


def stages(rows: Sequence[Row]) -> str:
    """What follows on the card of a model that several stages have made."""
    lines = [
        f"| {row.name} | {row.summary.steps} | {percent(row.summary.before)} → {percent(row.summary.after)} "
        f"| {percent(row.summary.sparsity)} |"
        for row in rows
    ]
    return STAGES + "\n".join(lines) + "\n"


TRAINED = " (trained together with the student)"


def _model(spec: Mapping[str, Any]) -> str:
    if spec["path"] is not None:
        return f"`{spec['path']}`"
    return f"a random `{spec['config']['model_type']}` of width {spec['config'].get('hidden_size', 'default')}"


def teacher(spec: Mapping[str, Any]) -> str:
    """Who teaches, and what it reads, from the section ``teacher`` of a configuration."""
    told = "" if spec.get("prompt") is None else f", reading `{spec['prompt']}` in place of the prompt"
    if spec["kind"] == "self":
        return f"the student itself{told}"
    if spec["kind"] == "cached":
        return f"answers cached in `{spec['cache']}`"
    if spec["kind"] == "custom":
        return f"`{spec['custom']['_target_']}`{told}"
    if spec["kind"] == "cotrained":
        parts = spec["members"] or {"": spec}
        return "; ".join(f"{name}{name and ': '}{_model(part)}" for name, part in parts.items()) + TRAINED
    if spec["kind"] != "multi":
        return f"{_model(spec)}{told}" if spec["kind"] != "none" else "none"
    shares = {name: "" if spec["by"] else f", weight {member['weight']:g}" for name, member in spec["members"].items()}
    members = "; ".join(f"{name}: {_model(member)}{shares[name]}" for name, member in spec["members"].items())
    how = f"each row's own, by its field `{spec['by']}`" if spec["by"] else "mixed by weight"
    return f"{members} ({how}){told}"


def _objective(spec: Mapping[str, Any]) -> str:
    terms = []
    if spec["label_weight"] > 0:
        terms.append(f"{spec['label_weight']:g} · cross-entropy")
    if spec["logit_weight"] > 0:
        terms.append(f"{spec['logit_weight']:g} · {spec['divergence']}")
    return " + ".join(terms)


def _results(records: Sequence[Mapping[str, float]]) -> str:
    lines = ["| | before | after |", "|---|--:|--:|"]
    for key, label in MEASURED.items():
        values = [record[key] for record in records if key in record]
        if values:
            before = f"{values[0]:.4g}" if records[0].get(key) is not None else ""
            lines.append(f"| {label} | {before} | {values[-1]:.4g} |")
    return "\n".join(lines)
