"""``distill list [GROUP]...``: the options of each group, recipes and experiments first, with their descriptions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.commands import compose, overrides
from distill.config import suggest
from distill.errors import UserError

FIRST = ("recipe", "experiment")


def run(words: Sequence[str], multirun: bool, config_dir: str | None) -> int:
    """Prints one line per option of the groups named by ``words``, or of all.

    Raises:
        UserError: a word is no group.
    """
    folders = [compose.conf_dir()] if config_dir is None else [Path(config_dir), compose.conf_dir()]
    with compose.session(config_dir) as loader:
        names = [*FIRST, *(name for name in overrides.groups(loader) if name not in FIRST)]
        for word in words:
            if word not in names:
                raise UserError("GROUP", word, f"one of {', '.join(names)}{suggest.close(word, names)}")
        for group in words or names:
            print(f"{group}:")
            for option in overrides.options(loader, group):
                files = [folder / group / f"{option}.yaml" for folder in folders]
                print(f"  {option:<20} {describe(next(file for file in files if file.exists()))}".rstrip())
    return 0


def describe(path: Path) -> str:
    """The first comment of a YAML file that is not a directive to Hydra."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line), "")
