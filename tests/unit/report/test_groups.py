"""Groups of seeds: who belongs to one, what counts, and in which state a run is."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.report.collect import read
from distill.report.groups import Group, grouped, letters
from tests.unit.report.conftest import records, write_run

OLD = 1_000_000_000
SETTINGS = {
    "rollout": {"kind": "dataset"},
    "teacher": {"kind": "none"},
    "optimizer": {"lr": 1e-3},
    "trainer": {"max_steps": 4},
}


def make(
    path: Path, seed: int | None = 0, lr: float = 1e-3, steps: int = 4, accuracy: float = 0.5, name: str = "a"
) -> Path:
    """A run of 4 planned steps that reached ``steps`` long ago."""
    metrics = records(steps) if steps else []
    if metrics:
        metrics[-1] |= {"eval/accuracy": accuracy}
    write_run(path, metrics)
    config = {"seed": seed, "run_name": name, "logger": {"group": name}, **SETTINGS, "optimizer": {"lr": lr}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    os.utime(path / "metrics.jsonl", (OLD, OLD))
    return path


def groups(*paths: Path) -> list[Group]:
    return grouped([read(path) for path in paths])


def tell(folder: Path, **entries: dict[str, Any]) -> None:
    jobs = [{"dir": f"/was/here/{name}", **entry} for name, entry in entries.items()]
    (folder / "sweep.json").write_text(json.dumps({"jobs": jobs}))


def test_runs_that_differ_only_in_seed_and_name_are_one_group(tmp_path: Path) -> None:
    paths = [make(tmp_path / f"r{n}", seed=n, name=f"name{n}", accuracy=0.5 + n / 10) for n in range(3)]
    [one] = groups(*paths)
    assert (one.name, one.letter, one.n, one.steps, one.states) == ("recipe sft", "A", 3, "4", ["3 complete"])
    found = one.spread("accuracy")
    assert found is not None
    assert found.n == 3
    assert found.mean == pytest.approx(0.6)
    assert found.sd == pytest.approx(0.1)


def test_another_setting_is_another_group_in_the_order_given(tmp_path: Path) -> None:
    paths = [make(tmp_path / f"r{n}", seed=n // 2, lr=(1e-3, 1e-4)[n % 2]) for n in range(4)]
    assert [(group.letter, group.name, group.n) for group in groups(*paths)] == [
        ("A", "lr 1e-3", 2),
        ("B", "lr 1e-4", 2),
    ]


def test_an_incomplete_run_is_listed_and_in_no_mean(tmp_path: Path) -> None:
    paths = [make(tmp_path / f"r{n}", seed=n, accuracy=(0.5, 0.7, 0.1)[n], steps=(4, 4, 2)[n]) for n in range(3)]
    [one] = groups(*paths)
    assert one.states == ["2 complete", "1 stopped at step 2"]
    assert (one.n, one.steps, len(one.runs)) == (2, "4", 3)
    assert one.values("accuracy") == {0: 0.5, 1: 0.7}


def test_numbers_of_a_group_without_a_complete_run_say_how_far_it_came(tmp_path: Path) -> None:
    [one] = groups(make(tmp_path / "a", seed=0, steps=1), make(tmp_path / "b", seed=1, steps=3))
    assert (one.complete, one.steps, one.n) == ([], "1–3 of 4", 2)


def test_repeats_of_a_seed_count_once(tmp_path: Path) -> None:
    values = ((0, 0.5), (0, 0.7), (1, 0.9))
    [one] = groups(*(make(tmp_path / f"r{n}", seed=s, accuracy=a) for n, (s, a) in enumerate(values)))
    assert (one.n, one.repeated) == (2, [0])
    assert one.values("accuracy") == {0: pytest.approx(0.6), 1: 0.9}


def test_runs_of_unknown_seed_or_settings(tmp_path: Path) -> None:
    paths = [make(tmp_path / name, seed=None) for name in "ab"] + [make(tmp_path / name) for name in "cd"]
    for path in paths[2:]:
        (path / "config.yaml").unlink()
    first, *others = groups(*paths)
    assert (first.n, set(first.values("accuracy"))) == (2, {"a", "b"})
    assert [group.name for group in others] == ["c, settings unknown", "d, settings unknown"]
    assert [group.states for group in others] == [["1 planned steps unknown at step 4"]] * 2


def test_a_run_that_wrote_just_now_may_be_running(tmp_path: Path) -> None:
    path = make(tmp_path / "r", steps=2)
    os.utime(path / "metrics.jsonl")
    assert groups(path)[0].states == ["1 running or just stopped at step 2"]


def test_a_job_that_left_nothing_is_a_run_without_records(tmp_path: Path) -> None:
    (tmp_path / "0-lr=1").mkdir()
    (tmp_path / "multirun.yaml").touch()
    [one] = groups(tmp_path / "0-lr=1")
    assert one.states == ["1 failed or starting, nothing recorded"]
    assert (one.name, one.spread("accuracy"), one.steps) == ("job 0, settings unknown", None, "0")


def test_what_the_sweep_says_of_its_jobs(tmp_path: Path) -> None:
    paths = [make(tmp_path / f"r{n}", seed=n, steps=steps) for n, steps in enumerate((2, 2, 4, 4, 0))]
    failed = {"status": "failed", "error": "error: no space"}
    (tmp_path / "r3" / "model").mkdir()
    tell(tmp_path, r0=failed, r1={"status": "interrupted"}, r2=failed, r3=failed, r4={"status": "pending"})
    [one] = groups(*paths)
    assert [run.state for run in one.runs] == [
        "failed at step 2",
        "interrupted at step 2",
        "failed at step 4",  # while it exported its model
        "complete",  # run again since, alone
        "pending",
    ]
    assert [run.error for run in one.runs] == ["no space", None, "no space", None, None]


def test_jobs_that_never_began_are_grouped_by_what_started_them(tmp_path: Path) -> None:
    words = [
        ["recipe=opd", "a=1", "seed=0"],
        ["recipe=opd", "a=1", "seed=1", "resume=auto", "logger.group=g"],
        ["recipe=sft", "a=1", "seed=0"],
    ]
    tell(tmp_path, **{f"{n}-x": {"status": "failed", "overrides": own} for n, own in enumerate(words)})
    first, second = groups(*(tmp_path / f"{n}-x" for n in range(3)))
    assert (first.name, first.n, first.states) == ("recipe=opd, settings unknown", 2, ["2 failed"])
    assert [run.seed for run in first.runs] == [0, 1]
    assert second.name == "recipe=sft, settings unknown"
    assert not first.recorded


def test_a_broken_list_of_jobs_is_no_list(tmp_path: Path) -> None:
    path = make(tmp_path / "r")
    for content in ("{", "[]", '{"jobs": 3}', '{"jobs": [1, {"dir": 3}]}', '{"jobs": [{"dir": "/x/r", "status": 3}]}'):
        (tmp_path / "sweep.json").write_text(content)
        assert groups(path)[0].states == ["1 complete"]


def test_letters_go_on_after_z() -> None:
    assert [letters(index) for index in (0, 25, 26, 27, 52)] == ["A", "Z", "AA", "AB", "BA"]


def test_names_of_runs_are_short_and_distinct(tmp_path: Path) -> None:
    paths = [make(tmp_path / sweep / f"{n}-lr=1,seed={n}", seed=n) for sweep in "st" for n in range(2)]
    for sweep in "st":
        (tmp_path / sweep / "multirun.yaml").touch()
    paths.append(make(tmp_path / ("x" * 60)))
    shown = [run.name for group in groups(*paths) for run in group.runs]
    assert shown[:4] == ["s/job 0", "s/job 1", "t/job 0", "t/job 1"]
    assert len(shown[4].rsplit("/", 1)[-1]) == 40
