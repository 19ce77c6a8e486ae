"""Who may import whom, and how big files may get."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "distill"
FILES = sorted(PACKAGE.rglob("*.py"))
YAML = sorted((ROOT / "conf").rglob("*.yaml"))

BASE = {"types", "images", "errors", "components", "distributed", "sharding", "watchdog"}
NO_FRAMEWORK = {"lightning", "pytorch_lightning", "hydra", "omegaconf"}
LIBRARY = {"models", "rollouts", "teachers", "data"}
STEPPED = {"masked_optim", "masters", "partitions", "selection"}
MAY_IMPORT = {
    "types": {"errors"},
    "images": set(),
    "errors": set(),
    "components": {"errors"},
    "distributed": {"errors"},
    "watchdog": set(),
    "schedule": set(),
    "sharding": {"distributed", "errors"},
    "selection": set(),
    "masked_optim": {"selection"},
    "partitions": {"sharding", "selection"},
    "masters": {"distributed", "masked_optim", "partitions"},
    "losses": {"types", "errors"},
    "analysis": {"types", "errors"},
    "figures": {"errors"},
    "objective": {"components", "losses", "types", "errors"},
    **{part: {*BASE, "models"} for part in LIBRARY},
    "cache": {"types", "errors"},
    "teachers": {*BASE, "models", "cache"},
    "mutual": {"types", "errors", "losses", "models", "objective"},
    "correction": {*BASE, *LIBRARY, "losses", "objective"},
    "taps": {"config", "errors"},
    "places": {"errors", "models", "taps"},
    "features": {*BASE, "losses", "models", "mutual", "places", "taps"},
    "module": {*BASE, *LIBRARY, "correction", "features", "losses", "masked_optim", "mutual", "objective", "optim"},
    "maskfile": {"analysis", "errors"},
    "callbacks": {*BASE, *STEPPED, "analysis", "figures", "checkpoint", "manifest", "maskfile", "retention"},
    "config": {"errors"},
}
"""Parts of the package that each part may import besides itself; parts not named here are entry points."""


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Absolute names of everything a file imports, and whether the import runs when the file is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in ast.iter_child_nodes(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layers"
            yield from ((f"{node.module}.{alias.name}", id(node) in top) for alias in node.names)


def parts_imported(path: Path) -> set[str]:
    names = [name.split(".") for name, _ in imports(path)]
    return {name[1] for name in names if name[0] == "distill" and len(name) > 1}


def packages(path: Path, at_import: bool = False) -> set[str]:
    return {name.split(".")[0] for name, top in imports(path) if top or not at_import}


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 20
    assert len(YAML) > 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_layers(path: Path) -> None:
    own = part(path)
    if own in MAY_IMPORT:
        beyond = parts_imported(path) - MAY_IMPORT[own] - {own, "__version__"}
        assert not beyond, f"{own} may not import {beyond}"
    if own == "figures":
        assert packages(path, at_import=True).isdisjoint({"matplotlib", "torch"}), (
            "a run that draws nothing waits for nothing"
        )
        assert "matplotlib.pyplot" not in {name for name, _ in imports(path)}, "pyplot's state is everybody's"
    if own in {"losses", "analysis", "config"}:
        assert packages(path).isdisjoint(NO_FRAMEWORK)
    if own not in {"cli", "commands"}:
        assert packages(path).isdisjoint({"hydra", "omegaconf"}), "only the command line knows Hydra"
    if own == "config":
        assert packages(path).isdisjoint({"torch", "transformers"}), "validation answers without torch"
    if own != "distributed":
        assert not any(name.startswith("torch.distributed") for name, _ in imports(path))
    if own != "report":
        assert "wandb" not in packages(path, at_import=True), "wandb is imported only when it logs"


def test_the_command_line_loads_nothing_heavy() -> None:
    names = ("cli.py", "__main__.py", "__init__.py", "commands/compose.py", "commands/overrides.py", "commands/list.py")
    for path in (PACKAGE / name for name in names):
        assert packages(path).isdisjoint({"torch", "lightning", "transformers", "datasets", "wandb"}), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), "a file says in its first line what it is"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            assert node.end_lineno - node.lineno < 40, f"{node.name} is longer than 40 lines"


@pytest.mark.parametrize("path", YAML, ids=lambda path: str(path.relative_to(ROOT)))
def test_yaml_stays_short_and_described(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    assert any(line.startswith("# ") and "@package" not in line for line in lines[:2])


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "__init__.py"], ids=lambda path: path.stem)
def test_readme_has_a_line_for_every_file(path: Path) -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    inside = lines.index("distill/"), next(i for i, line in enumerate(lines) if line.startswith("conf/   "))
    folder = "distill/"
    found = set()
    for line in lines[slice(*inside)]:
        name = line.split()[0]
        if name.endswith("/"):
            folder = name if name == "distill/" else f"distill/{name}"
        else:
            found.add(f"{folder}{name}")
    assert str(path.relative_to(ROOT)) in found
