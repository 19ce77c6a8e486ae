"""Parts are complete or absent, belong to one rank each, and are never mixed with those of other settings."""

import json
import os
import socket
from pathlib import Path

import pytest

from distill import parts
from distill.errors import RunError, UserError


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "rows"

    def failing():
        yield "first"
        assert not target.exists()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        parts.write(target, failing())
    assert list(tmp_path.iterdir()) == []
    parts.write(target, ["ä", "b"])
    assert target.read_bytes() == "ä\nb\n".encode()


def test_what_killed_processes_began_to_write_goes_and_nothing_else(tmp_path: Path) -> None:
    parts.begin(tmp_path, {}, {})
    here, there = (f"{name}.draft" for name in (socket.gethostname(), "another-machine"))
    stale, others, old = (
        tmp_path / parts.FOLDER / f".000001.jsonl.{name}" for name in (f"a.{here}", there, f"b.{there}")
    )
    for path in (stale, others, old):
        path.touch()
    os.utime(old, (0, 0))
    kept = tmp_path / ".mine"
    kept.touch()

    def writing():
        yield "first"
        parts.begin(tmp_path, {}, {})
        yield "second"

    parts.write(parts.path(tmp_path, 0), writing())
    assert parts.path(tmp_path, 0).read_text() == "first\nsecond\n", "it lives, and its draft with it"
    assert (stale.exists(), others.exists(), old.exists(), kept.exists()) == (False, True, False, True)


@pytest.mark.parametrize("world", [1, 2, 5])
def test_every_part_is_made_by_one_rank(world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts.begin(tmp_path, {}, {})
    made = []
    monkeypatch.setenv("WORLD_SIZE", str(world))
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        parts.produce(tmp_path, 7, lambda number: [{"made": made.append(number)}])
        parts.produce(tmp_path, 7, lambda number: [{"made": made.append(number)}])
    assert sorted(made) == list(range(7))
    assert parts.missing(tmp_path, 7) == []
    assert parts.read(tmp_path, 6) == [{"made": None}]
    assert parts.read(tmp_path, 7) is None


def test_enough_is_asked_before_every_part(tmp_path: Path) -> None:
    parts.begin(tmp_path, {}, {})
    parts.produce(tmp_path, 9, lambda number: [], lambda: len(os.listdir(tmp_path / parts.FOLDER)) == 2)
    assert parts.missing(tmp_path, 9) == list(range(2, 9))


def test_text_that_other_readers_split_stays_one_row(tmp_path: Path) -> None:
    parts.begin(tmp_path, {}, {})
    text = "a\u2028b\u0085c\r\nd\x1ce"
    parts.produce(tmp_path, 1, lambda number: [{"text": text}])
    assert parts.read(tmp_path, 0) == [{"text": text}]


def test_other_settings_and_other_sources_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    parts.begin(out, {"seed": 0, "pair": (1, 2)}, {"tokenizer": "a"})
    parts.begin(out, {"seed": 0, "pair": (1, 2)}, {"tokenizer": "a"})
    for config in ({"seed": 1, "pair": (1, 2)}, {"seed": None, "pair": (1, 2)}, {"pair": (1, 2)}):
        with pytest.raises(UserError, match=f"`seed` must be 0, with which {out} was begun"):
            parts.begin(out, config, {"tokenizer": "a"})
    with pytest.raises(UserError, match="`out` must be another folder: this one was begun with other tokenizer"):
        parts.begin(out, {"seed": 0, "pair": (1, 2)}, {"tokenizer": "b"})


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"there is 'thesis.tex' in it"):
        parts.begin(tmp_path, {}, {})


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"config": 1, "made_from": {}})])
def test_damaged_settings_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / parts.SETTINGS).write_text(content)
    with pytest.raises(UserError, match=r"`out` must be a folder with an intact settings.json"):
        parts.begin(tmp_path, {}, {})


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    parts.begin(tmp_path, {}, {})
    parts.path(tmp_path, 0).write_text('{"a": 1}\n{"b"')
    with pytest.raises(RunError, match=r"000000\.jsonl is damaged; remove it"):
        parts.read(tmp_path, 0)


def test_a_manifest_stands_for_the_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / parts.MANIFEST).write_text("old")

    def rows():
        assert not (tmp_path / parts.MANIFEST).exists()
        yield "{}"

    parts.finish(tmp_path, {"rows": rows()}, {"count": 1})
    digest = parts.write(tmp_path / "again", ["{}"])
    assert json.loads((tmp_path / parts.MANIFEST).read_text()) == {"count": 1, "files": {"rows": digest}}
