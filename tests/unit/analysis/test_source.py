"""Reading checkpoints and matching their names; nothing is dropped silently."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from distill.analysis.source import Folder, Match, match, natural, refuse_not_finite, stem
from distill.errors import UserError

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def folder(path: Path, tensors: dict[str, Tensor], tie: bool | None = None) -> Path:
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    if tie is not None:
        (path / "config.json").write_text(json.dumps({"tie_word_embeddings": tie}))
    return path


def test_reads_a_folder_or_a_single_file(tmp_path: Path) -> None:
    weight = torch.randn(3, 2)
    path = folder(tmp_path, {"a.weight": weight, "a.steps": torch.arange(3), "h.0.attn.bias": torch.ones(1, 1, 4, 4)})
    for where in (path, path / "model.safetensors"):
        with Folder(where, "source") as source:
            assert dict(source.shapes) == {"a.weight": (3, 2)}
            assert source.skipped == ["a.steps", "h.0.attn.bias"]
            assert torch.equal(source.tensor("a.weight"), weight)


def shards(path: Path) -> Path:
    names = {
        "model.layers.10.a": "model-00001-of-00002.safetensors",
        "model.layers.2.a": "model-00002-of-00002.safetensors",
    }
    for name, file in names.items():
        save_file({name: torch.full((2,), float(len(file)))}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return path


def test_reads_shards_in_natural_order(tmp_path: Path) -> None:
    with Folder(shards(tmp_path), "source") as source:
        assert list(source.shapes) == ["model.layers.2.a", "model.layers.10.a"]
        assert source.tensor("model.layers.2.a").shape == (2,)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (shards(tmp_path) / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002"):
        Folder(tmp_path, "source")


@pytest.mark.parametrize("outside", ["../model.safetensors", "/etc/model.safetensors"])
def test_an_index_of_files_elsewhere_is_refused(tmp_path: Path, outside: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (inside := tmp_path / "inside").mkdir()
    (inside / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": outside}}))
    with pytest.raises(UserError, match=r"`source` must be an index of files beside it"):
        Folder(inside, "source")


def test_two_checkpoints_in_one_folder_are_refused(tmp_path: Path) -> None:
    single = folder(shards(tmp_path), {"model.layers.2.a": torch.zeros(2)}) / "model.safetensors"
    with pytest.raises(UserError, match="`trained` must be one checkpoint, not two"):
        Folder(tmp_path, "trained")
    with Folder(single, "trained") as found:
        assert not found.tensor("model.layers.2.a").any()


def test_a_tensor_missing_from_its_shard_is_named(tmp_path: Path) -> None:
    save_file({"other": torch.zeros(1)}, shards(tmp_path) / "model-00002-of-00002.safetensors")
    with pytest.raises(UserError, match=r"model\.layers\.2\.a"):
        Folder(tmp_path, "source")


@pytest.mark.parametrize("index", ["{}", "[]", "null", '{"weight_map": ["a"]}', '{"weight_map": {"a": 3}}', "{"])
def test_an_index_that_is_none_is_named(tmp_path: Path, index: str) -> None:
    (shards(tmp_path) / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"`trained` must be .*index\.json"):
        Folder(tmp_path, "trained")


@pytest.mark.parametrize("config", ["[]", "null", "3", "{"])
def test_a_broken_configuration_is_named(tmp_path: Path, config: str) -> None:
    (folder(tmp_path, {"a": torch.zeros(1)}) / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"`trained` must be .*config\.json"):
        Folder(tmp_path, "trained")


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({"a": torch.full((2,), float(number))}, tmp_path / f"model-{number}.safetensors")
    with pytest.raises(UserError, match="'a' is in two files"):
        Folder(tmp_path, "source")


@pytest.mark.parametrize("keep", [4, 60, -4])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    file = folder(tmp_path, {"a": torch.zeros(100)}) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"`trained` must be readable safetensors .*model\.safetensors"):
        Folder(tmp_path, "trained")


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`source` must be an existing folder"):
        Folder(tmp_path / "nowhere", "source")
    with pytest.raises(UserError, match="merge adapters, convert pickles"):
        Folder(tmp_path, "source")
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="merge adapters"):
        Folder(tmp_path, "source")


@pytest.mark.parametrize(
    ("tie", "equal", "tied"), [(None, True, True), (True, True, True), (False, True, False), (None, False, False)]
)
def test_a_copy_of_the_embedding_is_tied_unless_the_config_denies_it(
    tmp_path: Path, tie: bool | None, equal: bool, tied: bool
) -> None:
    weight = torch.randn(5, 4)
    path = folder(tmp_path, {EMBED: weight, HEAD: weight.clone() if equal else weight + 1}, tie)
    with Folder(path, "source") as source:
        assert source.tied == ({HEAD: EMBED} if tied else {})


def test_names_match_exactly_before_prefixes_are_removed() -> None:
    source = {"layers.0.q": (1,), "model.layers.0.q": (1,), "model.norm": (1,), "lm_head": (1,)}
    trained = {"model.layers.0.q": (1,), "language_model.model.norm": (1,), "base_model.model.lm_head": (1,)}
    found = match(source, trained)
    assert dict(found.pairs) == {
        "model.layers.0.q": "model.layers.0.q",
        "language_model.model.norm": "model.norm",
        "base_model.model.lm_head": "lm_head",
    }
    assert found.missing == ("layers.0.q",)


def test_ambiguous_prefixes_are_not_guessed() -> None:
    found = match({"model.a": (1,), "language_model.a": (1,)}, {"model.language_model.a": (1,)})
    assert found == Match((), missing=("model.a", "language_model.a"), extra=("model.language_model.a",))


def test_missing_extra_and_misshaped_are_listed() -> None:
    found = match({"a": (2, 3), "b": (4,), "c": (1,)}, {"a": (3, 2), "c": (1,), "d": (9,)})
    assert found.pairs == (("c", "c"),)
    assert found.missing == ("b",)
    assert found.extra == ("d",)
    assert found.misshaped == ("a [3, 2] against [2, 3]",)
    assert not found.complete
    assert "1 missing (b); 1 extra (d); 1 mis-shaped (a [3, 2]" in str(found)


@pytest.mark.parametrize(
    ("source", "trained", "source_tied", "trained_tied", "counted", "extra"),
    [
        ((EMBED, HEAD), (EMBED, HEAD), [HEAD], [HEAD], (EMBED,), ()),
        ((EMBED,), (EMBED, HEAD), [], [HEAD], (EMBED,), ()),
        ((EMBED, HEAD), (EMBED,), [HEAD], [], (EMBED,), ()),
        ((EMBED, HEAD), (EMBED, HEAD), [HEAD], [], (EMBED, HEAD), ()),
        ((EMBED, HEAD), (EMBED, HEAD), [], [], (EMBED, HEAD), ()),
        ((EMBED,), (EMBED, HEAD), [], [], (EMBED,), (HEAD,)),
    ],
    ids=["both tied", "stored twice after", "stored twice before", "untied by training", "untied", "new head"],
)
def test_tied_tensors_count_once(
    source: tuple[str, ...],
    trained: tuple[str, ...],
    source_tied: list[str],
    trained_tied: list[str],
    counted: tuple[str, ...],
    extra: tuple[str, ...],
) -> None:
    found = match(dict.fromkeys(source, (5, 4)), dict.fromkeys(trained, (5, 4)), source_tied, trained_tied)
    assert tuple(name for name, _ in found.pairs) == counted
    assert found.extra == extra
    assert found.missing == ()
    assert found.tied == ((HEAD,) if HEAD not in counted + extra else ())


def test_stems_and_order() -> None:
    assert stem("base_model.model.model.layers.0.q") == stem("model.language_model.layers.0.q") == "layers.0.q"
    assert sorted(["h.10.a", "h.9.b"], key=natural) == ["h.9.b", "h.10.a"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_nan_is_refused_in_every_format(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([1.0, float("nan")]).to(dtype)
    with Folder(folder(tmp_path, {"a": values}), "other") as found:
        refuse_not_finite(values[:1], found, "a")
        with pytest.raises(UserError, match=r"`other` must be a checkpoint of finite weights \('a' holds NaN"):
            refuse_not_finite(values, found, "a")
