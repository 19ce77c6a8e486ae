"""The Dockerfile installs files that exist and are sent to it, and does not run as root. Needs no container engine."""

from __future__ import annotations

import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def instructions() -> list[list[str]]:
    text = (ROOT / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def sources() -> list[str]:
    found = [source for name, *words in instructions() if name == "COPY" for source in words[:-1]]
    assert len(found) >= 5
    return found


@pytest.mark.parametrize("source", sources())
def test_what_is_copied_exists_and_is_sent(source: str) -> None:
    assert (ROOT / source).exists()
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    sent = True
    for rule in rules:
        if fnmatch(source, rule.lstrip("!")):
            sent = rule.startswith("!")
    assert sent


def test_the_image_does_not_run_as_root_and_starts_distill() -> None:
    words = instructions()
    users = [arguments for name, *arguments in words if name == "USER"]
    assert users
    assert users[-1] not in (["root"], ["0"])
    command = "".join(next(arguments for name, *arguments in words if name == "CMD"))
    assert command.startswith("[distill,train")


def test_no_folder_of_the_image_is_where_downloads_go() -> None:
    """A cluster runs it under the user's own id, and may mount it read-only."""
    variables = [word.partition("=")[0] for name, *words in instructions() if name == "ENV" for word in words]
    assert "PYTHONUNBUFFERED" in variables
    assert not {"HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "HOME"} & set(variables)


def test_versions_are_pinned() -> None:
    installs = [words for words in instructions() if words[:3] == ["RUN", "pip", "install"]]
    assert len(installs) == 2
    for words in installs:
        assert words[words.index("--constraint") + 1] == "constraints.txt"
    assert any(words[0] == "ARG" and words[1].startswith("BASE=python:3.12.") for words in instructions())
