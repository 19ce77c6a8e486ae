"""Checks of images: what only they have, and what only text has."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from distill.config import schema
from distill.config.problem import Problem

TASK = "image_classification"
SOURCES = {
    TASK: ("digits", "fashion_mnist", "image_folder", "image_dataset"),
    "semantic_segmentation": ("scenes", "mask_folder", "mask_dataset"),
}
"""Those of each task of images: with classes of images, and with classes of pixels."""
PICTURES = tuple(source for sources in SOURCES.values() for source in sources)
FILES = ("image_folder", "image_dataset", "mask_folder", "mask_dataset")
SAVED = ("image_dataset", "mask_dataset")
MASKED = ("mask_folder", "mask_dataset")
KEYS = ("image_size", "channels", "mean", "std", "pad_crop", "flip", "image_column", "label_column", "classes")
"""Keys of ``data`` that say something of images alone."""
COLUMNS = ("image_column", "label_column")
BUNDLED = "package://distill/"
TEXT_ONLY = {
    "data": ("max_length", "chat_template", "system_prompt", "operator", "digits", "prompt", "size", "options"),
    "student": ("tokenizer", "layers", "lora"),
    "teacher": ("tokenizer", "prompt", "by"),
    "callbacks": ("extrapolation",),
}
"""Keys that nothing reads where there is no text."""


def images(config: schema.Source, section: str) -> Iterator[Problem]:
    kind = f"{section}.source"
    if config.source not in PICTURES:
        yield from _changed(config, section, KEYS, kind, f"with {kind} {config.source!r}, which has no images")
        return
    if config.source not in SAVED:
        yield from _changed(config, section, COLUMNS, kind, f"unless {kind} is {' or '.join(map(repr, SAVED))}")
    if config.source not in MASKED:
        yield from _changed(config, section, ("classes",), kind, f"unless {kind} is {' or '.join(map(repr, MASKED))}")
    elif config.classes is None:
        yield Problem((f"{section}.classes", kind), None, f"given with {kind} {config.source!r}")
    if config.source in FILES and config.image_size is None:
        yield Problem((f"{section}.image_size", kind), None, f"given with {kind} {config.source!r}")
    channels = config.channels or (3 if config.source in (*FILES, "scenes") else 1)
    for name, values in (("mean", config.mean), ("std", config.std)):
        if (values is None) != (config.mean is None and config.std is None):
            yield Problem((f"{section}.{name}",), values, "given: mean and std belong together")
        elif values is not None and len(values) not in (1, channels):
            allowed = f"one number, or one for each of {channels} channels"
            yield Problem((f"{section}.{name}",), values, allowed)
    if config.std is not None and not all(value > 0 for value in config.std):
        yield Problem((f"{section}.std",), config.std, "above 0")


def text_alone(config: schema.TrainConfig, command: str) -> Iterator[Problem]:
    """Of a command that knows texts alone."""
    if config.task.name in SOURCES:
        yield Problem(("task.name",), config.task.name, f"'causal_lm' for `distill {command}`")


def task(config: schema.TrainConfig) -> Iterator[Problem]:
    """A task has data of its kind, and no keys of the other."""
    own = SOURCES.get(config.task.name, ())
    of_images = bool(own)
    sources = {"data": config.data} | ({} if config.eval_data is None else {"eval_data": config.eval_data})
    for section, part in sources.items():
        if (part.source not in own) if of_images else (part.source in PICTURES):
            kinds = f"one of {', '.join(own)}" if of_images else "a source of text"
            yield Problem(
                (f"{section}.source", "task.name"), part.source, f"{kinds} with task.name {config.task.name!r}"
            )
    for name in ("new_head", "frozen_batch_norm"):
        if getattr(config.student, name) and not of_images:
            allowed = f"false unless task.name is {' or '.join(map(repr, SOURCES))}"
            yield Problem((f"student.{name}", "task.name"), True, allowed)
    if of_images and config.student.new_head and config.student.path is None:
        allowed = "false without student.path: what is drawn has a fresh head"
        yield Problem(("student.new_head", "student.path"), True, allowed)
    if not of_images:
        return
    why = f"with task.name {config.task.name!r}"
    for section, model in _teachers(config):
        if str(model.path).startswith(BUNDLED):
            allowed = f"a model of images {why} (the one that comes with distill is a language model)"
            yield Problem((f"{section}.path", "task.name"), model.path, allowed)
    yield from _text_only(config, {**sources, "student": config.student, "teacher": config.teacher}, why)
    if config.objective.divergence == "sampled_token" and config.objective.logit_weight > 0:
        yield Problem(
            ("objective.divergence", "task.name"), "sampled_token", f"another divergence {why}: none is sampled"
        )


def _text_only(config: schema.TrainConfig, sections: dict[str, BaseModel], why: str) -> Iterator[Problem]:
    sections |= dict(_teachers(config))
    for section, part in {**sections, "callbacks": config.callbacks}.items():
        names = TEXT_ONLY["data" if section == "eval_data" else section.partition(".")[0]]
        read = tuple(name for name in names if name in type(part).model_fields)
        yield from _changed(part, section, read, "task.name", why)


def _teachers(config: schema.TrainConfig) -> list[tuple[str, schema.Model]]:
    members = ((f"teacher.members.{name}", member) for name, member in config.teacher.members.items())
    return [("teacher", config.teacher), *members]


def _changed(part: BaseModel, section: str, names: tuple[str, ...], because: str, why: str) -> Iterator[Problem]:
    """Keys that have a value of their own, though nothing reads them."""
    for name in names:
        field, value = type(part).model_fields[name], getattr(part, name)
        default = field.get_default(call_default_factory=True)
        if value != default:
            told = {None: "null", False: "false"}.get(default, default) if not isinstance(default, dict) else "empty"
            shown = value.model_dump() if isinstance(value, BaseModel) else value
            yield Problem((f"{section}.{name}", because), shown, f"{told} {why}")
