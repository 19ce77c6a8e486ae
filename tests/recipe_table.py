"""The table of docs/recipes.md: which recipe runs for which task under which strategy, by the tests that run it, and
what is refused.

    python -m tests.recipe_table        # writes the table into docs/recipes.md

Every recipe has a row for every task. A cell says "runs" only where a test trains that recipe for that task under that
strategy and compares it with one process; a combination that the configuration allows and no test runs fails
``tests/unit/test_recipe_table.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from distill.commands import compose
from distill.config import checks
from distill.config.schema import TrainConfig
from distill.config.validate import ConfigError, validate
from tests import tiny
from tests.distributed import test_extrapolation, test_kd_variance, test_masked, test_parity, test_parity_images

DOC = Path(__file__).parents[1] / "docs" / "recipes.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->\n"
STRATEGIES = {"single": ["trainer=cpu"], "ddp": ["trainer=ddp_cpu"]}
STRATEGIES |= {name: [f"trainer={name}"] for name in ("zero1", "zero2", "zero3", "zero3_offload")}
SHARDED = "sharded teacher"
TEXTS, IMAGES, MASKS = "causal_lm", test_parity_images.IMAGES, test_parity_images.MASKS
TASKS = (TEXTS, IMAGES, MASKS)
COLUMNS = {**STRATEGIES, SHARDED: ["trainer=zero3", "teacher.placement=sharded"]}
MEMBERS = "teacher.members={a: {path: package://distill/assets/teacher}, b: {path: package://distill/assets/teacher}}"
SEVERAL = ("recipe=multi_teacher", MEMBERS)
RECIPES: dict[str, tuple[str, ...]] = {
    "sft": ("recipe=sft",),
    "offline_kd": ("recipe=offline_kd",),
    "offline_kd, teacher=cached": ("recipe=offline_kd", "teacher=cached"),
    "opd": ("recipe=opd",),
    "opd, callbacks=effopd": ("recipe=opd", "callbacks=effopd"),
    "speculative_kd": ("recipe=speculative_kd",),
    "self_distillation": ("recipe=self_distillation",),
    "self_distillation, teacher=self": ("recipe=self_distillation", "teacher=self"),
    "multi_teacher": SEVERAL,
    "multi_teacher, rollout=dataset": (*SEVERAL, "rollout=dataset", "objective=forward_kl"),
    "online_kd": ("recipe=online_kd",),
    "online_adm": ("recipe=online_adm",),
    "online_lora": ("recipe=online_lora",),
    "two_stage": ("recipe=two_stage",),
    "subnetwork": ("recipe=[sft,subnetwork]", "callbacks.update_mask.path=x"),
    "kd_variance": ("recipe=kd_variance",),
}
"""Each as it is asked for; nothing has to be there, as only the configuration is looked at."""
PATHS = "teacher.members={a: {path: x}, b: {path: y}}"
OF_IMAGES = {
    **dict.fromkeys(("offline_kd", "online_kd", "online_adm", "two_stage", "kd_variance"), "teacher.path=x"),
    **dict.fromkeys(("multi_teacher", "multi_teacher, rollout=dataset"), PATHS),
}
"""The teachers of images, which have no default."""


@dataclass(frozen=True)
class Tested:
    """The columns under which ``test`` trains something."""

    columns: frozenset[str]
    test: str


UNTESTED = Tested(frozenset(), "")


def words(recipe: str, task: str) -> list[str]:
    """What is said to ``distill train``."""
    teacher = [OF_IMAGES[recipe]] if task != TEXTS and recipe in OF_IMAGES else []
    return [*RECIPES[recipe], f"task={task}", *teacher]


@cache
def tested() -> dict[tuple[str, str], Tested]:
    """By recipe and task."""
    found = {(name, TEXTS): columns for name, columns in _texts().items()}
    for task, recipe, _ in test_parity_images.MATRIX:
        own = (strategy for t, r, strategy in test_parity_images.MATRIX if (t, r) == (task, recipe))
        found[recipe, task] = Tested(frozenset({"single", *own}), _file(test_parity_images))
    reduced = frozenset({"single", *(changes["trainer__strategy"] for changes in test_kd_variance.CASES.values())})
    return found | {("kd_variance", IMAGES): Tested(reduced, _file(test_kd_variance))}


def _texts() -> dict[str, Tested]:
    parity = {
        **{name: _in_parity(name) for name in tiny.RECIPES},
        "multi_teacher": _of("several-", test_parity.OWN_TEXT),
        "multi_teacher, rollout=dataset": _in_parity("multi_teacher"),
        "self_distillation": _of("told-", test_parity.TOLD),
        "self_distillation, teacher=self": _in_parity("self_distillation"),
        "offline_kd, teacher=cached": frozenset({"single", *test_parity.CACHED.values()}),
        "online_adm": _of("adm-", test_parity.ADM),
        "online_lora": _of("lora-", test_parity.ADAPTED),
        "two_stage": _of("stages-", test_parity.CHAINS),
    }
    extrapolated = {name.removesuffix("_bf16") for name in (*test_extrapolation.FP32, *test_extrapolation.BF16)}
    if test_extrapolation.SHARDED_TEACHER in test_extrapolation.FP32:
        extrapolated.add(SHARDED)
    masked = frozenset({"single", *(case.partition("-")[0] for case in test_masked.FP32)})
    return {name: Tested(columns, _file(test_parity)) for name, columns in parity.items()} | {
        "opd, callbacks=effopd": Tested(frozenset({"single", *extrapolated}), _file(test_extrapolation)),
        "subnetwork": Tested(masked, _file(test_masked)),
    }


def _file(module: ModuleType) -> str:
    return f"{module.__name__.replace('.', '/')}.py"


def _of(prefix: str, cases: Iterable[str]) -> frozenset[str]:
    """Columns of cases that are named after them."""
    return frozenset({"single", *(name.removeprefix(prefix) for name in cases)})


def _in_parity(recipe: str) -> frozenset[str]:
    """Strategies of the parity matrix, whose reference is a run in one process."""
    runs = test_parity.CASES
    found = {name for name in STRATEGIES if f"{recipe}-{name}" in runs}
    sharded = {of for of, _, changes in runs.values() if changes.get("teacher__placement") in ("sharded", "offloaded")}
    return frozenset({"single", *found, *({SHARDED} if recipe in sharded else ())})


@cache
def composed(*said: str) -> dict[str, Any]:
    """A configuration as plain values, whatever the checks would say of it."""
    [one] = compose.check("train", said, own_check=lambda config: iter(()))
    return one.config


@cache
def column(name: str) -> dict[str, dict[str, Any]]:
    """What a column changes, by section: composing each cell by itself would take longer than all the checks."""
    plain, changed = composed(), composed(*COLUMNS[name])
    assert all(plain[key] == changed[key] for key in plain.keys() - {"trainer", "teacher"})
    return {
        section: {key: value for key, value in changed[section].items() if value != plain[section][key]}
        for section in ("trainer", "teacher")
    }


def refusal(said: Sequence[str], name: str) -> str | None:
    """Why a configuration is refused in a column, in the words of its message; None if it is not."""
    config = composed(*said)
    config = config | {section: config[section] | changes for section, changes in column(name).items()}
    try:
        validate(config, TrainConfig, checks.run)
    except ConfigError as error:
        return str(error.problems[0])
    return None


@cache
def render() -> str:
    """The table and the messages it refers to."""
    messages: list[str] = []
    lines = [f"| recipe | task | {' | '.join(COLUMNS)} | tested by |", f"|---|---|{'---|' * len(COLUMNS)}---|"]
    for recipe in RECIPES:
        for task in TASKS:
            cells = list(_cells(recipe, task, messages))
            test = f"`{tested()[recipe, task].test}`" if (recipe, task) in tested() else ""
            lines.append(f"| {recipe} | {task} | {' | '.join(cells)} | {test} |")
    lines += ["", *(f"{number}. {message}" for number, message in enumerate(messages, start=1))]
    return "\n".join(lines) + "\n"


def _cells(recipe: str, task: str, messages: list[str]) -> Iterator[str]:
    for name in COLUMNS:
        message = refusal(words(recipe, task), name)
        if message is None:
            yield "runs" if name in tested().get((recipe, task), UNTESTED).columns else "untested"
        else:
            if message not in messages:
                messages.append(message)
            yield f"refused ({messages.index(message) + 1})"


def document(text: str) -> tuple[str, str, str]:
    """What comes before the table, the table, and what comes after it."""
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    return before, table, after


if __name__ == "__main__":
    before, _, after = document(DOC.read_text(encoding="utf-8"))
    DOC.write_text(f"{before}{BEGIN}{render()}{END}{after}", encoding="utf-8")
