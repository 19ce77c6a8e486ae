"""Work in numbered parts: files of JSON lines, each complete or absent, that any number of ranks make without waiting.

Part ``j`` falls to rank ``j % world``. A part is a function of the settings and its number alone, so a command that
was killed goes on with what is missing, on as many ranks as there are now, and whoever finds all parts there joins
them: the result is the same, byte by byte. Two that join at once write the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from distill import distributed
from distill.errors import RunError, UserError

SETTINGS, MANIFEST, FOLDER = "settings.json", "manifest.json", "parts"

Rows = list[dict[str, Any]]


def begin(out: Path, config: Mapping[str, Any], made_from: Mapping[str, Any]) -> None:
    """Opens ``out``, or goes on in it if ``config`` (by dotted key) and ``made_from`` (by what it is) are those it was
    begun with.

    Raises:
        UserError: they are not, naming the first that differs; or there is something else in the folder.
    """
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    path = out / SETTINGS
    settings = json.loads(json.dumps({"config": config, "made_from": made_from}))
    if not path.exists():
        # Another rank may write its settings right now, or have been killed at it.
        others = {file.name for file in out.iterdir() if not file.name.startswith(".")} - {FOLDER, SETTINGS}
        if others:
            allowed = f"a new or empty folder, or one that this command began (there is {min(others)!r} in it)"
            raise UserError("out", str(out), allowed)
        write(path, [json.dumps(settings, indent=1)])
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        then, source = dict(before["config"]), dict(before["made_from"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("out", str(out), f"a folder with an intact {SETTINGS}") from error
    for key in sorted(then.keys() | settings["config"].keys()):
        there, here = then.get(key), settings["config"].get(key)
        if there != here:
            raise UserError(key, here, f"{there!r}, with which {out} was begun (or choose another `out`)")
    for name in sorted(source.keys() | settings["made_from"].keys()):
        if source.get(name) != settings["made_from"].get(name):
            raise UserError("out", str(out), f"another folder: this one was begun with other {name}")


def produce(out: Path, count: int, make: Callable[[int], Rows], enough: Callable[[], bool] = lambda: False) -> None:
    """Makes what is missing of this rank's parts, in order, until all are there or ``enough`` says so."""
    for number in missing(out, count):
        if enough():
            return
        write(path(out, number), (json.dumps(row, ensure_ascii=False) for row in make(number)))


def missing(out: Path, count: int) -> list[int]:
    """Numbers of the parts that this rank has still to make."""
    mine = range(distributed.rank(), count, distributed.world_size())
    return [number for number in mine if not path(out, number).exists()]


def path(out: Path, number: int) -> Path:
    return out / FOLDER / f"{number:06d}.jsonl"


def read(out: Path, number: int) -> Rows | None:
    """The rows of a part; None if it is not there.

    Raises:
        RunError: the file is not what was written.
    """
    file = path(out, number)
    try:
        # Not splitlines(), for which U+2028 ends a line.
        return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{file} is damaged; remove it, and the same command makes it again.") from error


def write(target: Path, lines: Iterable[str]) -> str:
    """Writes lines to a file that appears, or takes the place of another, when it is complete and on the disk.

    Returns the SHA-256 (hex) of its bytes.
    """
    # Not the process id, which two machines may share.
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}.draft")
    content = hashlib.sha256()
    try:
        with draft.open("wb") as file:
            for line in lines:
                data = f"{line}\n".encode()
                content.update(data)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()
    return content.hexdigest()


def finish(out: Path, files: Mapping[str, Iterable[str]], told: Mapping[str, Any]) -> None:
    """Writes the joined ``files``, then the manifest that makes them count: what is ``told``, and their SHA-256."""
    (out / MANIFEST).unlink(missing_ok=True)
    written = {name: write(out / name, lines) for name, lines in files.items()}
    write(out / MANIFEST, [json.dumps({**told, "files": written}, indent=1, ensure_ascii=False)])
