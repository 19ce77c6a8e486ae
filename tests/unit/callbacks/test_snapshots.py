"""Snapshots of weights: complete or absent, read in other pieces than they were written in, and pruned."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distill import distributed
from distill.callbacks import snapshots
from distill.callbacks.snapshots import INDEX, Snapshot, Writer
from distill.errors import RunError

WEIGHTS = {
    "a": torch.arange(7, dtype=torch.float32),
    "b": torch.arange(33, dtype=torch.float32).bfloat16(),
    "scalar": torch.tensor(2.0),
    "empty": torch.empty(0, 4),
}
NUMEL = {name: value.numel() for name, value in WEIGHTS.items()}


def write(root: Path, step: int, weights: dict[str, Tensor] = WEIGHTS) -> None:
    writer = Writer(root, step)
    for name, value in weights.items():
        writer.add(name, 0, value)
    writer.publish()


def write_by_ranks(root: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two ranks do that have the first three coordinates of each weight, and the rest."""
    writers = []
    for rank in (0, 1):
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            writers.append(Writer(root, step))
        for name, value in WEIGHTS.items():
            flat = value.reshape(-1)
            writers[rank].add(name, 3 * rank, flat[3:] if rank else flat[:3])
    told = [writers[1]._finished()]
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "gather_objects", lambda mine: [mine, *told] if mine is not None else [None])
        writers[0].publish()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write(tmp_path, 50)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000050"]
    found = Snapshot(tmp_path, 50)
    found.check(NUMEL)
    for name, value in WEIGHTS.items():
        assert torch.equal(found.read(name, 0, value.numel()), value.reshape(-1))
    assert found.read("b", 0, 33).dtype == torch.bfloat16
    assert torch.equal(found.read("b", 5, 4), WEIGHTS["b"][5:9])


def test_pieces_of_other_ranks_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_by_ranks(tmp_path, 8, monkeypatch)
    found = Snapshot(tmp_path, 8)
    found.check(NUMEL)
    for start, numel in ((0, 33), (2, 2), (0, 3), (3, 30), (32, 1), (4, 0)):
        assert torch.equal(found.read("b", start, numel).float(), WEIGHTS["b"][start : start + numel].float())


def test_a_gap_an_overlap_and_a_missing_weight_are_found(tmp_path: Path) -> None:
    for step, starts in enumerate([(0, 5), (0, 3), (1, 4)]):
        writer = Writer(tmp_path, step)
        for start in starts:
            writer.add("w", start, torch.zeros(4))
        writer.publish()
        with pytest.raises(ValueError, match="does not hold all of w"):
            Snapshot(tmp_path, step).check({"w": 8})
    write(tmp_path, 9)
    with pytest.raises(ValueError, match="does not hold all of other"):
        Snapshot(tmp_path, 9).check({**NUMEL, "other": 2})


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing", "index", "keys", "version", "dtype", "offset"])
def test_damage_is_told(damage: str, tmp_path: Path) -> None:
    write(tmp_path, 50)
    file, index = tmp_path / "step-00000050" / "rank-0.bin", tmp_path / "step-00000050" / INDEX
    content = json.loads(index.read_text())
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "altered":
        file.write_bytes(b"\x01" + file.read_bytes()[1:])
    elif damage == "missing":
        file.unlink()
    elif damage == "index":
        index.write_text(index.read_text()[:-9])
    elif damage == "keys":
        index.write_text("[]")
    elif damage in ("dtype", "offset"):
        content["files"][0]["stretches"][0][damage] = {"dtype": "float3", "offset": 1 << 20}[damage]
        index.write_text(json.dumps(content))
    else:
        index.write_text(json.dumps({**content, "format": 9}))
    with pytest.raises(ValueError, match="step-00000050"):
        Snapshot(tmp_path, 50).check(NUMEL)


def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    writer = Writer(tmp_path, 1)
    with writer._stream, Path("/dev/full").open("wb") as full:
        writer._stream = full
        writer.add("a", 0, torch.zeros(1 << 20))
        writer.add("b", 0, torch.zeros(4))
        with pytest.raises(RunError, match=r"No space left.*since_last=false"):
            writer.publish()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told_when_all_ranks_can_hear_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    writer = Writer(tmp_path / "file" / "weights", 1)
    writer.add("a", 0, torch.zeros(3))
    with pytest.raises(RunError, match="cannot keep earlier weights"):
        writer.publish()


def test_the_newest_and_what_checkpoints_need_is_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        write(tmp_path, step)
    snapshots.prune(tmp_path, [5, 25, 39])
    assert snapshots.steps(tmp_path) == [20, 30, 50]
    snapshots.prune(tmp_path, [])
    assert snapshots.steps(tmp_path) == [50]


def test_resuming_drops_the_future_and_what_is_unfinished(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step)
    Writer(tmp_path, 40)
    snapshots.forget_after(tmp_path, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000020"]


def test_a_step_measured_again_replaces_its_snapshot(tmp_path: Path) -> None:
    write(tmp_path, 10)
    write(tmp_path, 10, {"a": torch.ones(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]
    assert Snapshot(tmp_path, 10).read("a", 0, 2).tolist() == [1, 1]


def test_another_run_goes_on_from_a_copy(tmp_path: Path) -> None:
    for step in (10, 20):
        write(tmp_path / "old", step)
    snapshots.adopt(tmp_path / "new", tmp_path / "old", 15)
    assert snapshots.steps(tmp_path / "new") == [10]
    Snapshot(tmp_path / "new", 10).check(NUMEL)
    snapshots.adopt(tmp_path / "other", tmp_path / "old", 5)
    assert not (tmp_path / "other").exists()
