"""Mask files: exact to the bit, complete or absent, and refused in one line when anything about them is wrong."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.errors import UserError
from distill.maskfile import MaskFile, Provenance, pack, write

SOURCE = "ab" * 32
PROVENANCE = Provenance("updated", SOURCE, "1.0", trained="cd" * 32, tolerance=1e-5, precision="bf16")
MASKS = {
    "model.layers.10.a": torch.tensor([[True, False, True], [False, False, True]]),
    "model.layers.2.a": torch.rand(8, 16, generator=torch.Generator().manual_seed(0)) > 0.7,
    "model.scalar": torch.tensor(True),
    "model.empty": torch.zeros(0, 4, dtype=torch.bool),
    "model.conv": torch.rand(3, 1, 2, 3, generator=torch.Generator().manual_seed(1)) > 0.5,
}


def written(path: Path, masks: dict[str, Tensor] = MASKS, provenance: Provenance = PROVENANCE) -> Path:
    write(path, {name: pack(mask) for name, mask in masks.items()}, provenance)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = MaskFile(written(tmp_path / "mask.safetensors"), "mask")
    assert found.names == ("model.conv", "model.empty", "model.layers.2.a", "model.layers.10.a", "model.scalar")
    assert found.provenance == PROVENANCE
    for name, mask in MASKS.items():
        assert found.shapes[name] == tuple(mask.shape)
        assert found.counts[name] == int(mask.sum())
        assert found.mask(name).dtype == torch.bool
        assert torch.equal(found.mask(name), mask)
    numel = sum(mask.numel() for mask in MASKS.values())
    assert found.density == sum(int(mask.sum()) for mask in MASKS.values()) / numel
    assert [path.name for path in tmp_path.iterdir()] == ["mask.safetensors"]


@given(st.integers(0, 70), st.randoms(use_true_random=False))
def test_packing_any_number_of_bits(numel: int, random: Any) -> None:
    values = [random.random() < 0.5 for _ in range(numel)]
    packed = pack(torch.tensor(values, dtype=torch.bool))
    assert packed.count == sum(values)
    assert packed.bits.tolist() == [
        sum(bit << place for place, bit in enumerate(values[start : start + 8])) for start in range(0, numel, 8)
    ]


def test_a_view_is_packed_as_it_is_seen() -> None:
    mask = torch.tensor([[True, False, False], [True, True, False]]).t()
    assert pack(mask).bits.tolist() == [0b001011]
    assert pack(mask).shape == (3, 2)


def test_the_documented_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "mask.safetensors")
    page = (Path(__file__).parents[2] / "docs" / "masks.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], found)
    assert found["masks"].keys() == MASKS.keys()
    for name, mask in MASKS.items():
        assert found["masks"][name].dtype == bool
        assert np.array_equal(found["masks"][name], mask.numpy())
    assert found["described"]["provenance"]["tolerance"] == 1e-5
    assert found["described"]["density"] == MaskFile(tmp_path / "mask.safetensors", "mask").density


def test_the_same_mask_gives_the_same_bytes(tmp_path: Path) -> None:
    backwards = dict(reversed(MASKS.items()))
    assert written(tmp_path / "a").read_bytes() == written(tmp_path / "b", backwards).read_bytes()


def test_a_new_file_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "mask.safetensors")
    old = MaskFile(path, "mask")
    written(path, {"a": torch.tensor([True])})
    assert MaskFile(path, "mask").names == ("a",)
    assert torch.equal(old.mask("model.conv"), MASKS["model.conv"])


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "mask.safetensors").mkdir()
    with pytest.raises(OSError, match="directory"):
        written(tmp_path / "mask.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["mask.safetensors"]


def read(path: Path) -> dict[str, Tensor]:
    found = MaskFile(path, "mask")
    return {name: found.mask(name) for name in found.names}


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert caught.value.key == "mask"
    return str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_truncated_file(tmp_path: Path, keep: int) -> None:
    path = written(tmp_path / "mask.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    assert "must be an intact mask file (" in refused(path)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path / "mask.safetensors")
    intact = path.read_bytes()
    header = int.from_bytes(intact[:8], "little")
    # A sample of the description, whose every byte is hashed, and all of the bits.
    for position in [*range(0, 8 + header, 7), *range(8 + header, len(intact))]:
        damaged = bytearray(intact)
        damaged[position] ^= 1 << position % 7
        path.write_bytes(damaged)
        assert "must be" in refused(path), position


def test_other_files(tmp_path: Path) -> None:
    assert "must be an existing mask file" in refused(tmp_path / "nowhere")
    assert "must be an existing mask file" in refused(tmp_path)
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors", {"format": "pt"})
    assert "must be a mask file made by `distill mask`, not other safetensors" in refused(
        tmp_path / "model.safetensors"
    )
    (tmp_path / "notes.txt").write_text("no safetensors at all, but long enough to look at")
    assert "must be an intact mask file (" in refused(tmp_path / "notes.txt")


def forged(path: Path, change: Any) -> Path:
    """The file with a description and tensors that ``change`` edits, and the checksum made right again."""
    with safe_open(written(path), "pt") as file:
        content = json.loads(file.metadata()["distill_mask"].split(" ", 1)[1])
    tensors = load_file(path)
    change(content, tensors)
    text = json.dumps(content)
    save_file(tensors, path, {"distill_mask": f"{hashlib.sha256(text.encode()).hexdigest()} {text}"})
    return path


def digest(content: Any, tensors: Any, name: str) -> None:
    content["tensors"][name]["sha256"] = hashlib.sha256(tensors[name].numpy().tobytes()).hexdigest()


def pad(content: Any, tensors: Any) -> None:
    tensors["model.scalar"] |= 2
    digest(content, tensors, "model.scalar")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (pad, "'model.scalar' has bits beyond its 1 coordinates"),
        (lambda content, tensors: tensors.pop("model.conv"), "its tensors are not those of its description"),
        (lambda content, tensors: tensors.update(more=torch.zeros(1)), "its tensors are not those of its description"),
        (lambda content, tensors: content["tensors"]["model.conv"].update(shape=[5, 5]), "'model.conv' is not one bit"),
        (lambda content, tensors: tensors.update({"model.scalar": torch.ones(1)}), "'model.scalar' is not one bit"),
        (lambda content, tensors: content["tensors"]["model.conv"].pop("shape"), "its description cannot be read"),
        (lambda content, tensors: content["provenance"].update(colour="red"), "its description cannot be read"),
        (lambda content, tensors: content.update(version=2), "that this version can read (format 1, not 2)"),
    ],
    ids=["padding", "missing", "extra", "shape", "dtype", "no shape", "unknown provenance", "later version"],
)
def test_a_file_that_contradicts_itself(tmp_path: Path, change: Any, reason: str) -> None:
    assert reason in refused(forged(tmp_path / "mask.safetensors", change))


def test_fitting_a_model(tmp_path: Path) -> None:
    masks = {"model.embed": torch.ones(3, 2, dtype=torch.bool), "model.a": torch.ones(4, dtype=torch.bool)}
    found = MaskFile(written(tmp_path / "mask.safetensors", masks), "student.mask")
    assert found.fit({"embed": (3, 2), "a": (4,)}) == {"embed": "model.embed", "a": "model.a"}
    assert found.fit({"embed": (3, 2), "a": (4,), "head": (3, 2)}, ["head"]) == {"embed": "model.embed", "a": "model.a"}
    for shapes, reason in (
        ({"embed": (3, 2)}, "1 missing (model.a)"),
        ({"embed": (2, 3), "a": (4,)}, "1 mis-shaped (embed [2, 3] against [3, 2])"),
        ({"embed": (3, 2), "a": (4,), "head": (3, 2)}, "1 extra (head)"),
    ):
        with pytest.raises(
            UserError, match=re.escape(f"`student.mask` must be a mask of the model's tensors ({reason}")
        ):
            found.fit(shapes)


def test_a_mask_of_other_weights_is_refused(tmp_path: Path) -> None:
    found = MaskFile(written(tmp_path / "mask.safetensors"), "mask")
    found.refuse_other_source(SOURCE, "mask")
    with pytest.raises(UserError, match=r"mask made for .* \(their fingerprint is efefefefefef, not abababababab"):
        found.refuse_other_source("ef" * 32, "mask")
