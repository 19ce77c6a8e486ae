"""What is installed: the wheel finds its YAML files and assets, and the pinned versions fit the declared ranges."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = {
    canonicalize_name(line.partition("==")[0]): Version(line.partition("==")[2])
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
}
EXTRAS = [text for extra in PROJECT["optional-dependencies"].values() for text in extra]
REQUIREMENTS = [Requirement(text) for text in [*PROJECT["dependencies"], *EXTRAS] if not text.startswith("distill[")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def distill(folder: Path, cwd: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "distill", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True, text=True).stdout


def tracked(folder: str) -> set[str]:
    files = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(ROOT)) for path in files}


def test_the_wheel_holds_package_assets_and_configuration(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    configuration = {f"distill/{name}" for name in tracked("conf")}
    assert len(configuration) > 30
    assert tracked("distill") | configuration <= held
    assert not any(name.startswith(("tests/", "conf/", "docs/")) for name in held)


def test_an_installed_wheel_reads_its_own_configuration(installed: Path, tmp_path: Path) -> None:
    assert f"file://{installed}/distill/conf" in distill(installed, tmp_path, "train", "--info", "searchpath")
    assert distill(installed, tmp_path, "list") == distill(ROOT, tmp_path, "list")
    shown = distill(installed, tmp_path, "train", "--cfg", "job", "recipe=sft")
    assert yaml.safe_load(shown)["run_name"] == "sft"
    assert list(tmp_path.iterdir()) == []


def test_a_checkout_reads_the_files_beside_the_package(tmp_path: Path) -> None:
    assert f"file://{ROOT}/conf" in distill(ROOT, tmp_path, "train", "--info", "searchpath")


def test_the_console_script_is_the_command_line() -> None:
    assert PROJECT["scripts"] == {"distill": "distill.__main__:main"}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_requirement_is_pinned_within_its_range(requirement: Requirement) -> None:
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_everything_imported_is_declared() -> None:
    declared = {canonicalize_name(requirement.name) for requirement in REQUIREMENTS}
    owners = packages_distributions()
    for path in sorted((ROOT / "distill").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"distill", "pydantic_core"}:
            assert declared & {canonicalize_name(owner) for owner in owners.get(name, [])}, f"{path} imports {name}"


def test_malicious_lightning_releases_are_excluded() -> None:
    [lightning] = [requirement for requirement in REQUIREMENTS if requirement.name == "lightning"]
    assert not any(lightning.specifier.contains(version) for version in ("2.6.2", "2.6.3"))
    assert lightning.specifier.contains("2.6.4")


def test_pins_name_no_host_file_or_local_build() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert not any(mark in text for mark in ("://", "file:", "+cpu", "--", "@"))
