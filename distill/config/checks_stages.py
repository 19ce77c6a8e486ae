"""Checks of a run of several stages: each is a run of its own, and is checked as one before any of them starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from distill.config import stages
from distill.config.checks_online import cotrained
from distill.config.flat import flat
from distill.config.problem import Problem
from distill.config.schema import TrainConfig
from distill.config.validate import collect
from distill.errors import UserError

Check = Callable[[TrainConfig], Iterator[Problem]]

WHOLE = {
    **dict.fromkeys(("resume", "run_name", "logger", "eval_data", "task", "stages", "stages_order"), "the whole run's"),
    **dict.fromkeys(("trainer.accelerator", "trainer.startup_timeout"), "the whole run's"),
    **dict.fromkeys(
        (
            "student.path",
            "student.config",
            "student.tokenizer",
            "student.revision",
            "student.layers",
            "student.new_head",
        ),
        "the first stage's: the others start from the student of the one before",
    ),
}
"""Keys that a stage cannot have for itself, and whose they are."""


def of_each(config: TrainConfig, check: Check) -> Iterator[Problem]:
    """What ``check`` finds in a run, in each of its stages, or in the mixture of them.

    A problem with a key that a stage overrides is named ``stages.NAME.KEY``.
    """
    if config.stages is None:
        if config.stages_order != "given":
            allowed = "'given' without stages (choose recipe=two_stage)"
            yield Problem(("stages_order", "stages"), config.stages_order, allowed)
        yield from check(config)
        return
    if config.resume not in (None, "auto"):
        yield Problem(("resume", "stages"), config.resume, "null or 'auto' for a run of several stages")
    if len(config.stages) < 2:
        yield Problem(("stages",), list(config.stages), "null, or at least two stages")
        return
    values = config.model_dump(mode="json", by_alias=True)
    yield from _misplaced(values["stages"])
    yield from _masked(values)
    values["stages"] = {name: _without(changes) for name, changes in values["stages"].items()}
    faulty = False
    for problem in _of_stages(values, check):
        faulty = True
        yield problem
    if config.stages_order == "mixed" and not faulty:
        yield from _mixture(values, check)


def _misplaced(given: dict[str, Any]) -> Iterator[Problem]:
    for name, changes in given.items():
        for key, value in flat(changes):
            for whole, whose in WHOLE.items():
                if key == whole or key.startswith(f"{whole}."):
                    allowed = f"left out of a stage: `{whole}` is {whose}"
                    yield Problem((f"stages.{name}.{key}",), value, allowed)


def _masked(values: dict[str, Any]) -> Iterator[Problem]:
    """A mask knows the weights that it was made for."""
    first, *later = stages.raw(values)
    if values["stages_order"] == "reversed":
        first, *later = reversed([first, *later])
    for name in later if values["stages_order"] != "mixed" else []:
        callbacks = stages.raw(values)[name]["callbacks"]
        mask = callbacks.get("update_mask") if isinstance(callbacks, dict) else None
        if mask is not None:
            key = "callbacks.update_mask"
            allowed = f"null in every stage but {first!r}: a mask is of the weights that a run starts from"
            own = _given(values["stages"][name], key)
            yield Problem((f"stages.{name}.{key}" if own else key, key), mask, allowed)


def _without(changes: dict[str, Any], section: str = "") -> dict[str, Any]:
    """What a stage may have for itself."""
    kept = {name: value for name, value in changes.items() if f"{section}{name}" not in WHOLE}
    return {
        name: _without(value, f"{section}{name}.") if isinstance(value, dict) else value for name, value in kept.items()
    }


def _of_stages(values: dict[str, Any], check: Check) -> Iterator[Problem]:
    def of_one(config: TrainConfig) -> Iterator[Problem]:
        yield from chain(check(config), cotrained(config))

    wrong = {name: collect(one, TrainConfig, of_one)[1] for name, one in stages.raw(values).items()}
    if values["eval_data"] is None:
        # What is wrong there is said of the stage that it comes from.
        wrong = {name: [one for one in found if not one.key.startswith("eval_data")] for name, found in wrong.items()}
    told = [{str(error) for error in errors} for errors in wrong.values()]
    everywhere = set.intersection(*told)
    found = dict[str, Problem]()
    for name, errors in wrong.items():
        for error in errors:
            own = _given(values["stages"][name], error.key) or str(error) not in everywhere
            problem = _problem(error, f"stages.{name}.{error.key}" if own else error.key)
            found.setdefault(problem.keys[0], problem)
    yield from found.values()


def _mixture(values: dict[str, Any], check: Check) -> Iterator[Problem]:
    found = stages.raw(values)
    if differ := stages.differences(found.values()):
        first, *others = found
        name = next((name for name in others if _given(values["stages"][name], differ[0])), first)
        value = dict(flat(found[name])).get(differ[0])
        allowed = "the same in all stages with stages_order 'mixed', which is one run"
        more = f" (so must {', '.join(differ[1:])})" if len(differ) > 1 else ""
        yield Problem((f"stages.{name}.{differ[0]}", "stages_order"), value, allowed + more)
        return
    for error in collect(stages.mixed(values), TrainConfig, check)[1]:
        yield _problem(error, named(error.key))


def named(key: str) -> str:
    """The key of a stage that became a part of a mixture: `data.parts.NAME.path` is `stages.NAME.data.path`."""
    name, dot, rest = key.removeprefix("data.parts.").partition(".")
    return f"stages.{name}.data.{rest}" if key.startswith("data.parts.") and dot else key


def _given(changes: dict[str, Any], key: str) -> bool:
    """Whether a stage overrides a key, or something in a section of that name."""
    return any(own == key or own.startswith(f"{key}.") or key.startswith(f"{own}.") for own, _ in flat(changes))


def _problem(error: UserError, name: str) -> Problem:
    return Problem((name, error.key), error.value, error.allowed)
