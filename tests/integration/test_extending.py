"""The worked example of docs/extending.md does what it says, and so do a teacher and a divergence of one's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill import cli
from distill.commands.train import run
from distill.errors import UserError
from distill.losses.divergence import forward_kl
from distill.models.build import build
from distill.teachers.frozen import FrozenTeacher
from tests import tiny

DOC = Path(__file__).parents[2] / "docs" / "extending.md"
FEW = ["trainer.max_steps=2", "data.batch_size=4", "callbacks=none", "rollout.max_new_tokens=4"]


def example(root: Path) -> None:
    """Writes every file that the page shows under the name that it gives it."""
    text = DOC.read_text(encoding="utf-8")
    for name, content in re.findall(r"`(my_\w+/[\w/.]+)`[^`]*```\w+\n(.*?)```", text, re.DOTALL):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def test_the_worked_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example(tmp_path)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2
    monkeypatch.setenv("DISTILL_ALLOWED_TARGETS", "my_recipes.")
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["--config-dir", str(tmp_path / "my_conf"), "recipe=best_of_n", *FEW]
    assert cli.main(["train", *words, f"hydra.run.dir={tmp_path}/run"]) == 0
    assert cli.main(["train", *words, "rollout.custom.n=1", f"hydra.run.dir={tmp_path}/one"]) == 0
    best, one = tiny.metrics(tmp_path / "run"), tiny.metrics(tmp_path / "one")
    assert best[0]["on_policy"] == 1.0
    assert best[0]["teacher_nll"] < one[0]["teacher_nll"], "the best of four is likelier than the first"


def test_what_is_not_on_the_list_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example(tmp_path)
    words = ["--config-dir", str(tmp_path / "my_conf"), "recipe=best_of_n", f"hydra.run.dir={tmp_path}/run"]
    assert cli.main(["train", *words]) == 2
    assert "`rollout.custom._target_` must be one of distill.callbacks.*" in capsys.readouterr().err


def scaled(student: Tensor, teacher: Tensor, by: float = 1.0) -> Tensor:
    return by * forward_kl(student, teacher, normalised=True)


def summed(student: Tensor, teacher: Tensor) -> Tensor:
    return scaled(student, teacher).sum()


class Copy(FrozenTeacher):
    """The student as it was at the start."""

    def __init__(self, student: Any, seed: int) -> None:
        super().__init__(build(tiny.config("sft")["student"], seed=seed, key="teacher"))


def losses(folder: Path, **changes: Any) -> list[float]:
    config = tiny.config("offline_kd", callbacks__evaluation=None, callbacks__checkpoint=None, **changes)
    assert run(config, folder) == 0
    return [record["loss"] for record in tiny.metrics(folder) if "loss" in record]


def test_a_divergence_of_ones_own(tmp_path: Path) -> None:
    ours = {"divergence": "custom", "custom": {"_target_": f"{__name__}.scaled", "by": 2.0}, "logit_weight": 1.0}
    plain = {"divergence": "forward_kl", "logit_weight": 2.0}
    assert losses(tmp_path / "ours", objective=ours) == pytest.approx(losses(tmp_path / "plain", objective=plain))
    assert "custom" in tiny.metrics(tmp_path / "ours")[0]
    with pytest.raises(UserError, match=r"`objective.custom` must be a function that maps .* \(it gave \[\]\)"):
        losses(tmp_path / "no", objective=ours | {"custom": {"_target_": f"{__name__}.summed"}})


def test_a_teacher_of_ones_own(tmp_path: Path) -> None:
    found = losses(tmp_path / "run", teacher={"kind": "custom", "custom": {"_target_": f"{__name__}.Copy"}})
    assert len(found) == 6
    assert tiny.metrics(tmp_path / "run")[0]["forward_kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("tests.nowhere.At", "No module named"),
        (f"{__name__}.missing", "has no attribute 'missing'"),
        (f"{__name__}.Copy", "unexpected keyword argument 'n'"),
    ],
)
def test_what_cannot_be_made_is_named(target: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"`teacher.custom._target_` must be a class or function.*{said}"):
        losses(tmp_path / "run", teacher={"kind": "custom", "custom": {"_target_": target, "n": 1}})
    assert not (tmp_path / "run").exists()


class Broken:
    def __init__(self, student: Any, seed: int) -> None:
        raise ZeroDivisionError("first line\nsecond line")


def test_what_breaks_while_it_is_made_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"takes the arguments beside it \(first line\)"):
        losses(tmp_path / "run", teacher={"kind": "custom", "custom": {"_target_": f"{__name__}.Broken"}})


def test_an_evaluation_imports_no_more_than_a_configuration_may(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run directory may come from somebody else."""
    losses(tmp_path / "run", teacher={"kind": "custom", "custom": {"_target_": f"{__name__}.Copy"}})
    assert cli.main(["eval", f"checkpoint={tmp_path}/run"]) == 2
    assert "`teacher.custom._target_` must be one of distill.callbacks.*" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rollout.kind=custom"], "`rollout.custom` must be given as {_target_: module.Name, …}"),
        (["objective.divergence=custom"], "`objective.custom` must be given"),
        (["teacher.kind=custom", "teacher.path=null"], "`teacher.custom` must be given"),
        (["+rollout.custom._target_=distill.rollouts.x.Y"], "`rollout.custom` must be null unless rollout.kind"),
    ],
)
def test_a_choice_and_its_part_go_together(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", *words]) == 2
    assert said in capsys.readouterr().err


def test_rows_of_ones_own_are_seeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = {
        "rollout": {"kind": "custom", "custom": {"_target_": "my_recipes.best_of_n.BestOfN", "n": 2}},
        "objective": {"divergence": "forward_kl"},
    }
    torch.manual_seed(1)
    first = losses(tmp_path / "first", **changes)
    torch.manual_seed(2)
    assert losses(tmp_path / "second", trainer__micro_batch_size=5, **changes) == pytest.approx(first, rel=1e-5)
