"""The table of docs/recipes.md: which recipe runs under which strategy, by the tests that run it, and what is refused.

    python -m tests.recipe_table        # writes the table into docs/recipes.md

A cell says "runs" only where a test trains that recipe under that strategy and compares it with one process; a
combination that the configuration allows and no test runs fails ``tests/unit/test_recipe_table.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from distill.commands import compose
from distill.config import checks
from distill.config.validate import ConfigError
from tests import tiny
from tests.distributed import test_extrapolation, test_kd_variance, test_masked, test_parity

DOC = Path(__file__).parents[1] / "docs" / "recipes.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->\n"
STRATEGIES = {"single": ["trainer=cpu"], "ddp": ["trainer=ddp_cpu"]}
STRATEGIES |= {name: [f"trainer={name}"] for name in ("zero1", "zero2", "zero3", "zero3_offload")}
SHARDED = "sharded teacher"
IMAGES, MASKS = "image_classification", "semantic_segmentation"
COLUMNS = {**STRATEGIES, SHARDED: ["trainer=zero3", "teacher.placement=sharded"]}
MEMBERS = "teacher.members={a: {path: package://distill/assets/teacher}, b: {path: package://distill/assets/teacher}}"


@dataclass(frozen=True)
class Entry:
    """A row: words of ``distill train``, the columns under which ``test`` trains it, that test's file, and the task."""

    words: tuple[str, ...]
    tested: frozenset[str]
    test: str
    task: str = "causal_lm"


def entries() -> dict[str, Entry]:
    parity = "tests/distributed/test_parity.py"
    found = {
        name: Entry((f"recipe={name}", *((MEMBERS,) if name == "multi_teacher" else ())), _in_parity(name), parity)
        for name in tiny.RECIPES
    }
    found["self_distillation, teacher=self"] = Entry(
        ("recipe=self_distillation", "teacher=self"), _in_parity("self_distillation"), parity
    )
    found["self_distillation"] = Entry(("recipe=self_distillation",), _of("told-", test_parity.TOLD), parity)
    cached = frozenset({"single", *test_parity.CACHED.values()})
    found["offline_kd, cached"] = Entry(("recipe=offline_kd", "teacher=cached"), cached, parity)
    masked = frozenset({"single", *(case.partition("-")[0] for case in test_masked.FP32)})
    mask = "callbacks.update_mask.path=x"
    found["subnetwork"] = Entry(("recipe=[sft,subnetwork]", mask), masked, "tests/distributed/test_masked.py")
    extrapolated = {name.removesuffix("_bf16") for name in (*test_extrapolation.FP32, *test_extrapolation.BF16)}
    if test_extrapolation.SHARDED_TEACHER in test_extrapolation.FP32:
        extrapolated.add(SHARDED)
    file = "tests/distributed/test_extrapolation.py"
    found["opd, effopd"] = Entry(("callbacks=effopd",), frozenset({"single", *extrapolated}), file)
    for name in tiny.PICTURED:
        words = (f"recipe={name}", f"task={IMAGES}", *(("teacher.path=x",) if name == "offline_kd" else ()))
        cases = [case for case in test_parity.PICTURED if case.startswith(f"images-{name}-")]
        found[f"{name}, images"] = Entry(words, _of(f"images-{name}-", cases), parity, IMAGES)
    words = ("recipe=offline_kd", f"task={MASKS}", "teacher.path=x")
    found["offline_kd, pixels"] = Entry(words, _of("masks-", test_parity.SEGMENTED), parity, MASKS)
    reduced = frozenset({"single", *(changes["trainer__strategy"] for changes in test_kd_variance.CASES.values())})
    words = ("recipe=kd_variance", "teacher.path=x")
    found["online_adm"] = Entry(("recipe=online_adm",), _of("adm-", test_parity.ADM), parity)
    found["kd_variance"] = Entry(words, reduced, "tests/distributed/test_kd_variance.py", IMAGES)
    found["two_stage"] = Entry(("recipe=two_stage",), _of("stages-", test_parity.CHAINS), parity)
    return found


def _of(prefix: str, cases: Iterable[str]) -> frozenset[str]:
    """Columns of cases that are named after them."""
    return frozenset({"single", *(name.removeprefix(prefix) for name in cases)})


def _in_parity(recipe: str) -> frozenset[str]:
    """Strategies of the parity matrix, whose reference is a run in one process."""
    runs = test_parity.CASES
    found = {name for name in STRATEGIES if f"{recipe}-{name}" in runs}
    sharded = {of for of, _, changes in runs.values() if changes.get("teacher__placement") in ("sharded", "offloaded")}
    return frozenset({"single", *found, *({SHARDED} if recipe in sharded else ())})


def refusal(words: tuple[str, ...], column: str) -> str | None:
    """Why a configuration is refused, in the words of its message; None if it is not."""
    try:
        compose.check("train", [*words, *COLUMNS[column]], own_check=checks.run)
    except ConfigError as error:
        return str(error.problems[0])
    return None


@cache
def render() -> str:
    """The table and the messages it refers to."""
    said: list[str] = []
    lines = [f"| recipe | task | {' | '.join(COLUMNS)} | tested by |", f"|---|---|{'---|' * len(COLUMNS)}---|"]
    for name, entry in entries().items():
        cells = list(_cells(entry, said))
        shown = name.removesuffix(", images").removesuffix(", pixels")
        lines.append(f"| {shown} | {entry.task} | {' | '.join(cells)} | `{entry.test}` |")
    lines += ["", *(f"{number}. {message}" for number, message in enumerate(said, start=1))]
    return "\n".join(lines) + "\n"


def _cells(entry: Entry, said: list[str]) -> Iterator[str]:
    for column in COLUMNS:
        message = refusal(entry.words, column)
        if message is None:
            yield "runs" if column in entry.tested else "untested"
        else:
            if message not in said:
                said.append(message)
            yield f"refused ({said.index(message) + 1})"


def document(text: str) -> tuple[str, str, str]:
    """What comes before the table, the table, and what comes after it."""
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    return before, table, after


if __name__ == "__main__":
    before, _, after = document(DOC.read_text(encoding="utf-8"))
    DOC.write_text(f"{before}{BEGIN}{render()}{END}{after}", encoding="utf-8")
