"""The dashboard as code: every panel shows keys that are recorded, and what is built is what W&B would get."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from distill import module
from distill.callbacks import evaluation, geometry, gradient_variance, metrics, moments, sparsity, sparsity_media
from distill.commands.dashboard import run
from distill.config.schema_dashboard import DashboardConfig
from distill.errors import RunError, UserError
from distill.objective import Objective
from distill.report import dashboard
from distill.report.panels import SECTIONS, Lines, Media

SOURCES = (module, metrics, evaluation, sparsity, sparsity_media, moments, geometry, gradient_variance)
DOCUMENTED = {key for source in SOURCES for key in source.KEYS}
DOCUMENTED |= set(re.findall(r"``(\w+)``", Objective.__call__.__doc__ or "")) | {"reverse_kl", "forward_kl"}
PANELS = [panel for section in SECTIONS for panel in section.panels]
EXAMPLES = {"MEASURE": list(geometry.HEADLINE), "PRECISION": ["bf16", "fp32"]}


def config(**changes: Any) -> dict[str, Any]:
    return DashboardConfig(**changes).model_dump()


@pytest.fixture
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)


def documented(key: str) -> bool:
    for known in DOCUMENTED:
        pattern = re.escape(known)
        for word, examples in EXAMPLES.items():
            pattern = pattern.replace(word, f"({'|'.join(map(re.escape, examples))})")
        if re.fullmatch(re.sub("[A-Z]{3,}", "[^/]+", pattern), key):
            return True
    return False


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_panels_show_what_is_recorded(panel: Lines | Media) -> None:
    if isinstance(panel, Lines) and panel.prefix is not None:
        assert not panel.keys
        assert any(known.startswith(panel.prefix) for known in DOCUMENTED)
        return
    assert panel.keys
    for key in panel.keys:
        assert documented(key), key


def test_the_check_of_panels_can_fail() -> None:
    assert not documented("sparsity/bf17/0")
    assert not documented("geometry/bf16/rank.median")
    assert not documented("update/relative_norms")


def test_every_kind_of_key_of_sparsity_has_a_panel() -> None:
    shown = {key for panel in PANELS for key in panel.keys}
    prefixes = tuple(panel.prefix for panel in PANELS if isinstance(panel, Lines) and panel.prefix is not None)
    for known in (*sparsity.KEYS, *sparsity_media.KEYS):
        pattern = re.sub("[A-Z]{3,}", "[^/]+", known)
        found = known.startswith(prefixes) or any(re.fullmatch(pattern, key) for key in shown)
        # One number per module of each layer is a map, not a chart.
        assert found or known == "sparsity/module/LAYER.MODULE", known


def test_without_a_login_a_file_holds_both(no_login: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(config(project="p", groups=["sft", "opd of SmolLM2"], runs=["one"]), tmp_path) == 0
    assert "dashboard.json (no login" in capsys.readouterr().out
    content = json.loads((tmp_path / "dashboard.json").read_text())
    bank = content["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in bank] == [section.name for section in SECTIONS]
    assert [section["isOpen"] for section in bank].count(True) == 4
    (tolerances,) = (section for section in bank if section["name"].startswith("Sparsity by"))
    assert "sparsity/bf16/1e-5" in tolerances["panels"][0]["config"]["metrics"]
    text = json.dumps(content["report"])
    assert [name in text for name in ("sft", "opd of SmolLM2", "one", "displayName")] == [True] * 4
    assert content["workspace"]["project"] == "p"


def test_all_runs_are_compared_by_group_by_default() -> None:
    found = dashboard.specification(*_built())
    assert '"All runs"' in json.dumps(found)


def _built() -> tuple[Any, Any]:
    return dashboard.workspace("p", "e", "n"), dashboard.comparison("p", "e", "n", [], [])


def test_a_file_is_written_with_a_login_too(no_login: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert run(config(out=str(tmp_path / "deep" / "board.json")), tmp_path) == 0
    assert json.loads((tmp_path / "deep" / "board.json").read_text())["report"]


def test_with_a_login_both_are_saved(
    no_login: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = []

    def save(view: Any) -> Any:
        saved.append(view._to_model().model_dump(mode="json", by_alias=True, exclude_none=True))
        return view

    for kind in ("workspaces.Workspace", "reports.v2.Report"):
        name, _, attribute = kind.rpartition(".")
        monkeypatch.setattr(getattr(dashboard.library(name), attribute), "save", save)
        address = property(lambda _, attribute=attribute: f"https://wandb.ai/me/{attribute}")
        monkeypatch.setattr(getattr(dashboard.library(name), attribute), "url", address)
    monkeypatch.setattr(dashboard, "default_entity", lambda: "me")
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password " + "x" * 40 + "\n")
    assert run(config(), tmp_path) == 0
    assert [view["entity"] for view in saved if "entity" in view] == ["me"]
    assert len(saved) == 2
    assert "saved: https://wandb.ai/me/Report" in capsys.readouterr().out
    assert not (tmp_path / "dashboard.json").exists()


def test_what_wandb_refuses_is_one_line(no_login: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> None:
        raise ValueError("permission\ndenied")

    monkeypatch.setattr(dashboard.library("workspaces").Workspace, "save", refuse)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    with pytest.raises(RunError, match=r"permission denied\); out=FILE"):
        run(config(entity="me"), tmp_path)


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(UserError, match=r"distill\[dashboard\]"):
        dashboard.workspace("p", "e", "n")


def test_another_host_needs_a_key_of_its_own(no_login: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password x\n")
    assert dashboard.logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not dashboard.logged_in()
