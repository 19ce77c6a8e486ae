"""From what a person names to run directories."""

import json
from pathlib import Path

import pytest

from distill.errors import UserError
from distill.report.gather import holder, run_dirs
from tests.unit.report.conftest import records, write_run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Jobs 0, 2 and 10; job 10 has left an empty folder."""
    folder = tmp_path / "sweep-1"
    for name in ("2-lr=1,seed=0", "0-lr=1,seed=1"):
        write_run(folder / name, records())
    (folder / "10-lr=1,seed=2").mkdir()
    (folder / ".submitit").mkdir()
    (folder / "notes").mkdir()
    (folder / "multirun.yaml").write_text("a: 1\n")
    return folder


def names(*elements: Path | str) -> list[str]:
    return [folder.name.split("-")[0] for folder in run_dirs([str(element) for element in elements])]


def test_a_sweep_is_its_jobs_by_number_also_those_that_left_nothing(sweep: Path) -> None:
    assert names(sweep) == names(f"{sweep}/*") == names(f"{sweep.parent}/sweep-*") == ["0", "2", "10"]


def test_the_sweeps_own_list_names_jobs_that_have_no_folder(sweep: Path) -> None:
    jobs = [{"number": n, "dir": f"/elsewhere/{n}-lr=1,seed=2", "status": "pending"} for n in (10, 11)]
    (sweep / "sweep.json").write_text(json.dumps({"jobs": [*jobs, {"dir": ""}, 3]}))
    assert names(sweep) == ["0", "2", "10", "11"]


def test_a_folder_of_runs_holds_only_what_is_a_run(sweep: Path) -> None:
    (sweep / "multirun.yaml").unlink()
    assert names(sweep) == ["0", "2"]


def test_runs_keep_the_order_they_are_given_in(sweep: Path) -> None:
    assert names(sweep / "2-lr=1,seed=0", sweep / "0-lr=1,seed=1") == ["2", "0"]


@pytest.mark.parametrize(
    ("element", "allowed"),
    [
        ("nowhere", "existing run directories, sweep directories or patterns"),
        ("nowhere*", "a run directory .with metrics.jsonl, …., or a sweep or pattern that holds one"),
        ("sweep-1/notes", "a run directory"),
        ("sweep-1/multirun.yaml", "existing run directories"),
    ],
)
def test_what_is_no_run_is_refused(sweep: Path, element: str, allowed: str) -> None:
    with pytest.raises(UserError, match=rf"`runs` must be {allowed}.*, but is '.*{element[:-1]}"):
        run_dirs([str(sweep / "2-lr=1,seed=0"), str(sweep.parent / element)])


def test_an_empty_sweep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "multirun.yaml").touch()
    with pytest.raises(UserError, match="`runs` must be a run directory"):
        run_dirs([str(tmp_path)])


def test_a_run_named_twice_is_refused_by_whatever_name(sweep: Path) -> None:
    (sweep.parent / "link").symlink_to(sweep / "2-lr=1,seed=0")
    for again in (f"{sweep}/2-*", f"{sweep}/../sweep-1/2-lr=1,seed=0", str(sweep.parent / "link")):
        with pytest.raises(UserError, match="`runs` must be runs that are not listed yet"):
            run_dirs([str(sweep), again])


def test_the_folder_that_holds_all(sweep: Path) -> None:
    jobs = run_dirs([str(sweep)])
    assert holder(jobs) == sweep
    assert holder(jobs[:1]) == jobs[0]
    assert holder([*jobs, sweep.parent / "other"]) == sweep.parent
