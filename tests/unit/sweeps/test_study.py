from pathlib import Path
from typing import Any

import pytest

from distill.errors import UserError
from distill.sweeps.study import Study, corners, distribution

SPACE = {"optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True, "step": None}, "recipe": ["opd", "sft"]}
CONFIG = {"space": SPACE, "metric": "loss", "direction": "minimize", "overrides": [], "sampler_seed": 3}


def worth(params: dict[str, Any]) -> float:
    return abs(params["optimizer.lr"] - 0.01) + (params["recipe"] == "sft")


def search(home: Path, trials: int, die_at: tuple[int, ...] = (), **changes: Any) -> list[dict[str, Any]]:
    """The points of a study; at each of ``die_at`` everything is lost but the files."""
    study, deaths = Study(home, CONFIG | changes), list(die_at)
    while len(study.ended()) < trials:
        trial = study.ask()
        if deaths and len(study.ended()) == deaths[0]:
            deaths.pop(0)
            study = Study(home, CONFIG | changes)
            continue
        # A point of the middle fails: it must not be asked again.
        fails = len(study.ended()) == 2
        study.tell(trial, None if fails else worth(trial.params), "it failed" if fails else None)
    return [trial.params for trial in study.ended()]


def test_a_study_that_died_asks_the_same_points(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    straight = search(tmp_path / "a", 14)
    # Beyond the random points at the start of the sampler, too; the same trial may die twice.
    assert search(tmp_path / "b", 14, die_at=(0, 5, 5, 12)) == straight
    assert search(tmp_path / "c", 14, sampler_seed=4) != straight
    study = Study(tmp_path / "b", CONFIG)
    assert study.best is not None
    assert study.best.value == min(worth(params) for number, params in enumerate(straight) if number != 2)
    assert [trial.user_attrs.get("reason") for trial in study.ended()][:4] == [None, None, "it failed", None]


def test_a_value_that_is_no_number_is_a_failure(tmp_path: Path) -> None:
    study = Study(tmp_path, CONFIG)
    study.tell(study.ask(), float("nan"))
    assert study.best is None
    assert study.ended()[0].user_attrs["reason"] == "the metric is nan"


@pytest.mark.parametrize("change", [{"direction": "maximize"}, {"metric": "x"}, {"space": {"seed": [1, 2]}}])
def test_another_study_in_the_same_folder_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    Study(tmp_path, CONFIG)
    with pytest.raises(UserError, match=f"`{next(iter(change))}` must be .* as in the study of"):
        Study(tmp_path, CONFIG | change)


def test_distributions() -> None:
    whole = distribution({"low": 1, "high": 8, "log": True, "step": None})
    assert (whole.low, whole.high, whole.log) == (1, 8, True)
    assert type(whole).__name__ == "IntDistribution"
    assert type(distribution({"low": 1, "high": 8.0, "log": False, "step": 0.5})).__name__ == "FloatDistribution"
    assert distribution(["a", None, True]).choices == ("a", None, True)
    assert list(corners({"low": 1, "high": 8})) == [1, 8]
