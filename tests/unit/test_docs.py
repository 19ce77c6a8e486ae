"""Commands in the documentation can be pasted: a shell makes words of them that Hydra can read."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHELL = """
distill() { for word in "$@"; do printf '%s\\0' "$word"; done; printf '\\n\\0'; }
command_not_found_handle() { :; }
"""
"""Nothing else is found, and so nothing else is done."""


def commands(page: Path, folder: Path) -> list[list[str]]:
    """The words of every ``distill …`` in the page's shell blocks."""
    text = SHELL + "\n".join(BLOCK.findall(page.read_text(encoding="utf-8")))
    environment = {"PATH": str(folder), "HOME": str(folder)}
    done = subprocess.run(["/bin/bash"], input=text, env=environment, cwd=folder, capture_output=True, text=True)
    found = done.stdout.split("\n\0")[:-1]
    return [one.split("\0")[:-1] for one in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_can_be_pasted(page: Path, tmp_path: Path) -> None:
    parser = OverridesParser.create()
    for command, *words in commands(page, tmp_path):
        assert command.isalpha(), command
        parser.parse_overrides([word for word in words if "=" in word])


def test_commands_are_found(tmp_path: Path) -> None:
    found = [words for page in PAGES for words in commands(page, tmp_path)]
    assert len(found) > 100
    assert ["train", "recipe=online_kd"] in found
    assert os.listdir(tmp_path) == []
