"""Checkpoint directories: complete or absent, verified file by file, found with and without their pointer."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from distill import checkpoint, manifest
from distill.errors import RunError, UserError
from distill.manifest import Layout, Manifest
from distill.retention import Retention

SHARDS = [f"checkpoint/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)]
LAYOUT = Layout("zero3", 2, "bf16-mixed", "float32")


def save(run_dir: Path, step: int, **record: Any) -> Path:
    """A checkpoint of two ranks, as the callback saves it."""
    root = run_dir / "checkpoints"
    staged = checkpoint.staging(root, step)
    inner = staged / checkpoint.STATE / "checkpoint"
    inner.mkdir(parents=True)
    for rank, name in enumerate(SHARDS):
        (staged / checkpoint.STATE / name).write_bytes(bytes([step % 256, rank]) * 100)
    (staged / checkpoint.STATE / "latest").write_text("checkpoint")
    files = manifest.written_by(staged, 0, 2) | manifest.written_by(staged, 1, 2)
    return checkpoint.publish(staged, Manifest(step, LAYOUT, files, **record))


def shard(folder: Path, rank: int) -> Path:
    return folder / checkpoint.STATE / SHARDS[rank]


def test_manifest_says_everything_about_every_file(tmp_path: Path) -> None:
    folder = save(tmp_path, 7, monitor="eval/accuracy", value=0.5)
    content = json.loads((folder / checkpoint.MANIFEST).read_text())
    files = content.pop("files")
    assert content == {
        "format": 2,
        "step": 7,
        "strategy": "zero3",
        "world_size": 2,
        "precision": "bf16-mixed",
        "masters": "float32",
        "monitor": "eval/accuracy",
        "value": 0.5,
    }
    assert {name: file["rank"] for name, file in files.items()} == {
        "state.ckpt/latest": 0,
        f"state.ckpt/{SHARDS[0]}": 0,
        f"state.ckpt/{SHARDS[1]}": 1,
    }
    assert manifest.read(folder, "resume").layout == LAYOUT
    assert checkpoint.verify(folder).step == 7


def swap(folder: Path) -> None:
    one, other = shard(folder, 0), shard(folder, 1)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def flip(folder: Path) -> None:
    content = bytearray(shard(folder, 1).read_bytes())
    content[50] ^= 4
    shard(folder, 1).write_bytes(content)


DAMAGE: dict[str, tuple[Any, str]] = {
    "truncated": (lambda f: shard(f, 1).write_bytes(b"x" * 9), "rank_1_.* of rank 1 has 9 bytes, not 200"),
    "missing": (lambda f: shard(f, 1).unlink(), "rank_1_.* of rank 1 is missing"),
    "swapped": (swap, r"rank_0_.* of rank 0 holds what rank 1 wrote as .*zero_pp_rank_1_"),
    "flipped": (flip, "rank_1_.* of rank 1 differs from its SHA-256"),
    "extra": (
        lambda f: shard(f, 1).with_name("zero_pp_rank_2_mp_rank_00_optim_states.pt").write_bytes(b"x"),
        "rank_2_.* of rank 2 is not in manifest.json",
    ),
    "of another step": (
        lambda f: shard(f, 0).write_bytes(bytes([3, 0]) * 100),
        "rank_0_.* of rank 0 differs from its SHA-256",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_refused_by_file_and_rank(damage: str, tmp_path: Path) -> None:
    save(tmp_path, 2)
    newest = save(tmp_path, 4)
    harm, message = DAMAGE[damage]
    harm(newest)
    # Never the older one in its place.
    with pytest.raises(UserError, match=message):
        checkpoint.find("auto", tmp_path)
    with pytest.raises(UserError, match=message):
        checkpoint.find(str(newest), tmp_path)


def test_ranks_share_the_hashing(tmp_path: Path) -> None:
    folder = save(tmp_path, 2)
    flip(folder)
    content = manifest.read(folder, "resume")
    refused = 0
    for rank in range(2):
        try:
            manifest.check(folder, content, "resume", (rank, 2))
        except UserError:
            refused += 1
    assert refused == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": "x", "files": {}}', '{"format": 2, "step": 1, "files": {}}'])
def test_an_unreadable_manifest_is_refused(text: str, tmp_path: Path) -> None:
    folder = save(tmp_path, 2)
    (folder / checkpoint.MANIFEST).write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        checkpoint.find("auto", tmp_path)


def test_a_manifest_of_a_later_version_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 2)
    content = json.loads((folder / checkpoint.MANIFEST).read_text())
    (folder / checkpoint.MANIFEST).write_text(json.dumps(content | {"format": 3}))
    with pytest.raises(UserError, match="format 2, not 3"):
        checkpoint.verify(folder)


def test_a_checkpoint_of_format_1_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-00000005"
    folder.mkdir(parents=True)
    (folder / checkpoint.STATE).write_bytes(b"state")
    files = {checkpoint.STATE: {"sha256": manifest.sha256(folder / checkpoint.STATE), "bytes": 5}}
    (folder / checkpoint.MANIFEST).write_text(json.dumps({"step": 5, "files": files}))
    found = checkpoint.find("auto", tmp_path)
    assert found is not None
    assert (found.step, found.layout.strategy, found.layout.world_size) == (5, "single", None)


def test_pointer_names_the_newest(tmp_path: Path) -> None:
    for step in (2, 4):
        folder = save(tmp_path, step)
        assert (tmp_path / "checkpoints" / "latest").read_text() == f"{folder.name}\n"
    checkpoint.forget_after(tmp_path, 3)
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000002\n"
    checkpoint.forget_after(tmp_path, -1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == []


@pytest.mark.parametrize("pointer", [None, "", "step-00000002\n", "step-00000001\n", "nonsense"])
def test_a_missing_or_stale_pointer_costs_nothing(pointer: str | None, tmp_path: Path) -> None:
    save(tmp_path, 2)
    newest = save(tmp_path, 4)
    file = tmp_path / "checkpoints" / "latest"
    file.unlink() if pointer is None else file.write_text(pointer)
    assert checkpoint.latest(tmp_path) == newest


def test_a_newest_that_is_gone_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 2)
    save(tmp_path, 4).rename(tmp_path / "elsewhere")
    with caplog.at_level(logging.WARNING):
        found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.name == "step-00000002"
    assert "names step-00000004, which is gone: the newest one left is step-00000002" in caplog.text


def test_a_save_cut_short_at_any_write_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    reached = 0
    for cut in range(1, 40):
        run_dir = tmp_path / str(cut)
        save(run_dir, 2)
        calls, real = 0, manifest.flush

        def flush(path: Path, at: int = cut, real: Any = real) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                raise Killed
            real(path)

        with monkeypatch.context() as patch:
            patch.setattr(manifest, "flush", flush)
            try:
                save(run_dir, 4)
                break
            except Killed:
                reached += 1
        found = checkpoint.find("auto", run_dir)
        assert found is not None
        assert found.step in (2, 4)
        save(run_dir, 6)
        assert checkpoint.find("auto", run_dir) == checkpoint.verify(run_dir / "checkpoints" / "step-00000006")
        assert not list((run_dir / "checkpoints").glob("*.partial"))
    assert reached >= 8


def test_ranks_that_see_different_disks_publish_nothing(tmp_path: Path) -> None:
    staged = checkpoint.staging(tmp_path / "checkpoints", 2)
    (staged / "state.ckpt").write_bytes(b"x")
    files = manifest.written_by(staged, 0, 2)
    elsewhere = manifest.File("0" * 64, 1, 1)
    with pytest.raises(OSError, match=r"zero_pp_rank_1_x\.pt \(rank 1\): is the folder shared by all"):
        checkpoint.publish(staged, Manifest(2, LAYOUT, files | {"state.ckpt/zero_pp_rank_1_x.pt": elsewhere}))
    assert checkpoint.latest(tmp_path) is None


def test_pruning_reads_the_monitored_values_of_earlier_attempts(tmp_path: Path) -> None:
    rules = Retention(1, keep_best=1, monitor="eval/accuracy")
    for step, value in ((1, 0.2), (2, 0.9), (3, None), (4, 0.4)):
        save(tmp_path, step, monitor="eval/accuracy", value=value)
        checkpoint.prune(tmp_path / "checkpoints", rules)
    left = sorted(folder.name for folder in (tmp_path / "checkpoints").glob("step-*"))
    assert left == ["step-00000002", "step-00000004"]
    # Values of another metric say nothing about this one.
    save(tmp_path, 5, monitor="loss", value=99.0)
    checkpoint.prune(tmp_path / "checkpoints", Retention(1, keep_best=1, monitor="loss"))
    assert [folder.name for folder in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000005"]


def test_pruning_leaves_a_damaged_one_to_be_looked_at(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        folder = save(tmp_path, step)
        if step == 2:
            shard(folder, 1).unlink()
    checkpoint.prune(tmp_path / "checkpoints", Retention(1))
    left = sorted(folder.name for folder in (tmp_path / "checkpoints").glob("step-*"))
    assert left == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("me", [0, 1])
def test_ranks_that_find_different_checkpoints_do_not_start(
    me: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.distributed, "rank", lambda: me)
    monkeypatch.setattr(checkpoint.distributed, "gather_objects", lambda _: [(None, "step-00000002"), (None, None)])
    expected = UserError if me == 0 else RunError
    with pytest.raises(expected, match="rank 1 finds None" if me == 0 else "rank 0 has refused"):
        checkpoint.agree("auto", tmp_path)


@pytest.mark.parametrize("me", [0, 1])
def test_what_one_rank_refuses_starts_on_none(me: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [(None, "step-00000002"), (("resume", "there", "intact"), None)]
    monkeypatch.setattr(checkpoint.distributed, "rank", lambda: me)
    monkeypatch.setattr(checkpoint.distributed, "gather_objects", lambda _: told)
    with pytest.raises(UserError if me == 1 else RunError, match="intact" if me == 1 else "rank 1 has refused"):
        checkpoint.agree("auto", tmp_path)
