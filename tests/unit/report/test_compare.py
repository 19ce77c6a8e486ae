"""The comparison's page: nothing hidden, nothing averaged in silence, no network, not big."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill import cli
from distill.commands.report import run
from distill.report.collect import read
from distill.report.comparison import headline, pairs, signed, view
from distill.report.groups import grouped
from tests.unit.report.conftest import write_run
from tests.unit.report.test_groups import make, tell
from tests.unit.report.test_render import page

ACCURACIES = {1e-3: (0.50, 0.54, 0.58), 1e-4: (0.30, 0.35, 0.37)}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two learning rates with three seeds each, all complete."""
    folder = tmp_path / "sweep"
    for lr, values in ACCURACIES.items():
        for seed, accuracy in enumerate(values):
            number = len(list(folder.glob("*")))
            make(folder / f"{number}-lr={lr},seed={seed}", seed=seed, lr=lr, accuracy=accuracy)
    (folder / "multirun.yaml").touch()
    return folder


def shown(folder: Path, **keys: Any) -> str:
    assert run({"runs": [str(folder)], "out": None} | keys, Path()) == 0
    return page(folder / "compare.html")


def test_groups_runs_pairs_and_settings(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(sweep)
    assert capsys.readouterr().out == f"written to {sweep}/compare.html\n"
    for expected in (
        "6 runs · 6 complete",
        "2 groups; highest mean accuracy 54.0 ± 4.0 %: lr 1e-3",
        "54.0 % ± 4.0 % 44.1 to 63.9 %",
        "34.0 % ± 3.6 % 25.0 to 43.0 %",
        "A job 0 0 complete 4 3.1 % → 50.0 %",
        "+20.0 +17.5 to +22.5 interval excludes 0",
        "no difference in any pair",
        "optimizer.lr 1e-3 1e-4",
        "Student's t",
        "from its lowest to its highest run",
        "config.yaml of job 0",
    ):
        assert expected in text
    assert "Not in the numbers" not in text
    assert "†" not in text


def test_a_failed_run_is_listed_and_kept_out_of_the_mean(sweep: Path) -> None:
    for path in sweep.glob("2-*/metrics.jsonl"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
        os.utime(path, (0, 0))
    (sweep / "6-lr=1,seed=9").mkdir()
    names = {path.name: {"status": "failed", "error": "loss is <nan>"} for path in sweep.glob("2-*")}
    tell(sweep, **names)
    text = shown(sweep)
    assert "7 runs · 5 complete, 2 not" in text
    assert "52.0 % ± 2.8 %" in text
    assert "2 complete 1 failed at step 2" in text
    assert "Not in the numbers above, because not complete: job 2 (failed at step 2)." in text
    assert "failed loss is <nan> 2 of 4" in text
    assert "job 6, settings unknown" in text
    assert "failed or starting, nothing recorded" in text
    assert "† No run of the group is complete" in text


def test_a_group_without_a_complete_run_has_no_interval(tmp_path: Path) -> None:
    for seed in range(3):
        make(tmp_path / f"r{seed}", seed=seed, steps=2, accuracy=seed / 10)
    text = shown(tmp_path)
    assert "2 of 4 † 10.0 %" in text
    assert "± sd" in text
    assert "10.0 % ±" not in text
    assert "highest mean accuracy" not in text


def test_links_lead_to_each_runs_own_report(sweep: Path, tmp_path: Path) -> None:
    job = next(sweep.glob("0-*"))
    (job / "report.html").touch()
    out = tmp_path / "deep" / "all.html"
    assert run({"runs": [str(sweep)], "out": str(out)}, Path()) == 0
    html = out.read_text()
    assert 'href="../sweep/0-lr%3D0.001%2Cseed%3D0/report.html"' in html
    assert html.count("<a href") == 1


def test_different_objectives_and_environments_are_said(sweep: Path) -> None:
    assert "different objectives" not in shown(sweep)
    job = next(sweep.glob("0-*"))
    config = yaml.safe_load((job / "config.yaml").read_text()) | {"objective": {"divergence": "jsd"}}
    (job / "config.yaml").write_text(yaml.safe_dump(config))
    (job / "environment.json").write_text('{"python": "3.12.1", "command": ["x"]}')
    text = shown(sweep)
    assert "The groups minimise different objectives" in text
    assert "python: 3.12.1 (1 run), 3.11.7 (5 runs)" in text
    assert "command:" not in text


def test_copied_runs_are_not_more_seeds(sweep: Path) -> None:
    job = next(sweep.glob("0-*"))
    copy = sweep.parent / "copy"
    copy.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (copy / name).write_bytes((job / name).read_bytes())
    assert run({"runs": [str(sweep), str(copy)], "out": str(sweep / "compare.html")}, Path()) == 0
    assert "A: seed 0 occurs more than once; repeats are averaged and count as one seed." in page(
        sweep / "compare.html"
    )


def test_pairs_need_two_seeds_and_many_groups_are_compared_with_the_first(tmp_path: Path) -> None:
    paths = [make(tmp_path / f"{lr}-{seed}", seed=seed, lr=lr) for lr in range(1, 4) for seed in (lr, lr + 1, lr + 2)]
    found = pairs(grouped([read(path) for path in paths]))
    assert [(pair.left.letter, pair.right.letter, pair.seeds) for pair in found] == [
        ("A", "B", [2, 3]),
        ("B", "C", [3, 4]),
    ]
    more = [make(tmp_path / f"m{lr}-{seed}", seed=seed, lr=lr) for lr in range(10, 16) for seed in (1, 2)]
    groups = grouped([read(path) for path in more])
    assert {pair.left.letter for pair in pairs(groups)} == {"A"}
    assert len(pairs(groups)) == 5
    assert view(groups, tmp_path / "x.html")["all_pairs"] is False


def test_no_group_is_called_the_highest_when_two_are(tmp_path: Path) -> None:
    groups = grouped([read(make(tmp_path / str(lr), lr=lr, accuracy=0.5)) for lr in (1e-3, 1e-4)])
    assert headline(groups) == "2 groups"


@pytest.mark.parametrize(
    ("value", "quantity", "text"),
    [(0.1234, "accuracy", "+12.3"), (-0.5, "kl", "−0.5"), (0.0, "kl", "0"), (-1e-5, "sparsity", "0.0")],
)
def test_differences_have_signs(value: float, quantity: str, text: str) -> None:
    assert signed(value, quantity) == text


def test_fifty_long_runs_make_a_small_page_soon(tmp_path: Path) -> None:
    for number in range(50):
        metrics = [
            {"step": step, "time": float(step), "loss": 1.0 + (step * 7919 % 1000) / 1000, "grad_norm": 1.0 + step % 7,
             "student_entropy": 1.0, "tokens_per_second": 5.0, "tokens": float(step)}
            for step in range(2001)
        ]  # fmt: skip
        path = write_run(tmp_path / f"{number}-a=1", metrics, planned=2000)
        config = {"seed": number % 5, "trainer": {"max_steps": 2000}, "optimizer": {"lr": number // 5}}
        (path / "config.yaml").write_text(yaml.safe_dump(config))
    started = time.process_time()
    text = shown(tmp_path)
    assert time.process_time() - started < 15
    assert (tmp_path / "compare.html").stat().st_size < 2_000_000
    assert "Each point is the mean of up to 11 records." in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("runs=[{0},{0}]", "`runs` must be runs that are not listed yet"),
        ("runs=[{0}/nothing*]", "`runs` must be a run directory (with metrics.jsonl, …), or a sweep or pattern"),
        ("runs=[{0}/nothing]", "`runs` must be existing run directories, sweep directories or patterns of them"),
    ],
)
def test_mistakes_are_one_line(words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "run")
    assert cli.main(["report", words.format(folder)]) == cli.USER_ERROR
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
