"""Work in numbered parts: files of JSON lines, each complete or absent, that any number of ranks make without waiting.

Part ``j`` falls to rank ``j % world``. A part is a function of the settings and its number alone, so a command that
was killed goes on with what is missing, on as many ranks as there are now, and whoever finds all parts there joins
them: the result is the same, byte by byte. Two that join at once write the same.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from distill import distributed
from distill.errors import RunError, UserError

SETTINGS, MANIFEST, FOLDER = "settings.json", "manifest.json", "parts"

DRAFT = ".draft"
A_DAY = 86_400
"""Seconds after which a draft of another machine, whose locks need not be seen here, is nobody's."""

Rows = list[dict[str, Any]]


def begin(out: Path, config: Mapping[str, Any], made_from: Mapping[str, Any]) -> None:
    """Opens ``out``, or goes on in it if ``config`` (by dotted key) and ``made_from`` (by what it is) are those it was
    begun with. What processes that were killed had begun to write goes.

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
    for folder in (out, out / FOLDER):
        _clear(folder)


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
    content = hashlib.sha256()
    with _draft(target) as (path, file):
        for line in lines:
            data = f"{line}\n".encode()
            content.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
        path.replace(target)
    return content.hexdigest()


@contextmanager
def _draft(target: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A file beside ``target``, locked as long as this process lives; it goes unless it was renamed."""
    # Not the process id, which two machines may share.
    path = target.with_name(f".{target.name}.{uuid.uuid4().hex}.{socket.gethostname()}{DRAFT}")
    try:
        while True:
            file = path.open("wb")
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists():
                break
            # Cleared away before it was locked.
            file.close()
        with file:
            yield path, file
    finally:
        path.unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """Removes the drafts in ``folder`` that no process writes to any more."""
    for path in folder.glob(f".*{DRAFT}"):
        # It has gone, somebody writes to it, or the file system has no locks.
        with suppress(OSError), path.open("r+b") as file:
            here = path.name.endswith(f".{socket.gethostname()}{DRAFT}")
            if here or time.time() - path.stat().st_mtime > A_DAY:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def finish(out: Path, files: Mapping[str, Iterable[str]], told: Mapping[str, Any]) -> None:
    """Writes the joined ``files``, then the manifest that makes them count: what is ``told``, and their SHA-256."""
    (out / MANIFEST).unlink(missing_ok=True)
    written = {name: write(out / name, lines) for name, lines in files.items()}
    write(out / MANIFEST, [json.dumps({**told, "files": written}, indent=1, ensure_ascii=False)])
