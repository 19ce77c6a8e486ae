"""``distill analyze`` on two folders: files, columns, numbers, and inputs that cannot be compared."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from distill.analysis.comparable import caveat
from distill.analysis.outputs import GROUP_COLUMNS, TENSOR_COLUMNS
from distill.analysis.sparsity import compare, total_pair
from distill.commands.analyze import run
from distill.config.schema_analyze import AnalyzeConfig
from distill.errors import UserError

NAMES = {
    "model.embed_tokens.weight": (40, 16),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.0.mlp.up_proj.weight": (32, 16),
    "model.norm.weight": (16,),
}


def checkpoint(scale: float = 0.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    source = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in NAMES.items()}
    return {name: value + scale * torch.randn(value.shape, generator=generator) for name, value in source.items()}


def write(path: Path, tensors: dict[str, Tensor]) -> str:
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    return str(path)


def analyze(
    tmp_path: Path, source: dict[str, Tensor], trained: dict[str, Tensor], other: dict[str, Tensor] | None = None
) -> dict[str, Any]:
    config = AnalyzeConfig(
        source=write(tmp_path / "a", source),
        trained=write(tmp_path / "b", trained),
        other=None if other is None else write(tmp_path / "c", other),
        out=str(tmp_path / "out"),
        null_draws=2,
    ).model_dump()
    assert run(config, tmp_path / "out") == 0
    summary: dict[str, Any] = json.loads((tmp_path / "out" / "summary.json").read_text())
    return summary


@pytest.fixture(autouse=True)
def _without_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds, and one test looks at the page."""
    if request.function is not test_files_and_numbers:
        monkeypatch.setattr("distill.commands.analyze.render", lambda folder: folder / "report.html")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_files_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, trained = checkpoint(), checkpoint(2e-5)
    summary = analyze(tmp_path, source, trained)
    pairs = {name: compare(source[name], trained[name]) for name in source}
    whole = total_pair(pairs.values())
    headline = summary["metrics"]["bf16"]["sparsity_1e-5"]
    assert headline["observed"] == whole["bf16"].sparsity()
    assert headline["difference"] == headline["observed"] - headline["null"]
    assert abs(headline["difference"]) < 0.05
    assert summary["relative_norm"]["fp32"] == pytest.approx(whole["fp32"].relative_norm)
    assert summary["parameters"] == sum(value.numel() for value in source.values())
    assert f"{headline['observed']:.2%}" in capsys.readouterr().out

    tensors, groups = rows(tmp_path / "out" / "tensors.csv"), rows(tmp_path / "out" / "groups.csv")
    assert tuple(tensors[0]) == TENSOR_COLUMNS
    assert tuple(groups[0]) == GROUP_COLUMNS
    assert len(tensors) == 2 * len(NAMES)
    row = next(r for r in tensors if r["module"] == "up_proj" and r["precision"] == "bf16")
    assert (row["group"], row["layer"], row["shape"], row["trained_dtype"]) == ("mlp", "0", "32x16", "float32")
    assert float(row["sparsity_1e-5"]) == pairs["model.layers.0.mlp.up_proj.weight"]["bf16"].sparsity()
    assert float(row["difference_stable_rank"]) == float(row["stable_rank"]) - float(row["null_stable_rank"])
    assert sum(float(r["energy_share"]) for r in tensors if r["precision"] == "fp32") == pytest.approx(1)
    model = next(r for r in groups if r["scope"] == "model" and r["precision"] == "fp32")
    assert float(model["sparsity_0"]) == whole["fp32"].sparsity(0.0)
    assert float(model["null_sparsity_1e-5"]) == summary["metrics"]["fp32"]["sparsity_1e-5"]["null"]
    assert summary["groups"]["mlp"]["bf16"]["stable_rank.mean"]["observed"] == float(row["stable_rank"])
    spectra = json.loads((tmp_path / "out" / "spectra.json").read_text())
    assert set(spectra) == {name for name, shape in NAMES.items() if len(shape) == 2}
    assert spectra["model.embed_tokens.weight"]["observed"][0] == 1
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_another_run_is_compared_with_this_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {f"language_model.{name}": value for name, value in checkpoint(5e-5).items()}
    del other["language_model.model.norm.weight"]
    summary = analyze(tmp_path, checkpoint(), checkpoint(2e-5), other)
    found = summary["metrics"]["bf16"]
    assert 0 < found["jaccard_0"]["observed"] < 1
    assert found["overlap_of_trained_0"]["observed"] > found["overlap_of_other_0"]["observed"]
    assert found["observed_over_expected_0"]["null"] > 1
    assert summary["unmatched"]["other"]["missing"] == ["model.norm.weight"]
    assert "moved in both" in capsys.readouterr().out


def test_the_numbers_do_not_depend_on_threads(tmp_path: Path) -> None:
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        (tmp_path / str(threads)).mkdir()
        summary = analyze(tmp_path / str(threads), checkpoint(), checkpoint(2e-5))
        found.append((summary["metrics"], summary["groups"]))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert found[0] == found[1]


def test_what_does_not_match_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = checkpoint(1e-5) | {"model.norm.weight": torch.zeros(3), "new.weight": torch.zeros(2)}
    trained["steps"] = torch.arange(2)
    del trained["model.layers.0.mlp.up_proj.weight"]
    summary = analyze(tmp_path, checkpoint(), trained)
    assert summary["unmatched"]["missing"] == ["model.layers.0.mlp.up_proj.weight"]
    assert summary["unmatched"]["extra"] == ["new.weight"]
    assert summary["unmatched"]["misshaped"] == ["model.norm.weight [3] against [16]"]
    assert summary["unmatched"]["skipped"] == {"source": [], "trained": ["steps"]}
    assert summary["tensors"] == 2
    assert "left out: 1 missing" in capsys.readouterr().out


def test_a_tied_head_counts_once(tmp_path: Path) -> None:
    source, trained = checkpoint(), checkpoint(1e-4)
    trained["lm_head.weight"] = trained["model.embed_tokens.weight"].clone()
    summary = analyze(tmp_path, source, trained)
    assert summary["parameters"] == sum(value.numel() for value in source.values())
    assert summary["unmatched"]["tied"] == ["lm_head.weight"]


def test_a_large_update_is_called_not_comparable(tmp_path: Path) -> None:
    (note,) = analyze(tmp_path, checkpoint(), checkpoint(0.01))["notes"]
    assert "not comparable" in note
    assert "tends to 0 % whatever the method" in note


def test_a_structureless_update_stored_in_16_bits_is_its_null(tmp_path: Path) -> None:
    source = {name: value.bfloat16() for name, value in checkpoint().items()}
    generator = torch.Generator().manual_seed(8)
    trained = {
        name: (value.float() + 5e-5 * torch.randn(value.shape, generator=generator)).bfloat16()
        for name, value in source.items()
    }
    headline = analyze(tmp_path, source, trained)["metrics"]["fp32"]["sparsity_1e-5"]
    assert 0.2 < headline["observed"] < 0.9
    assert abs(headline["difference"]) < 0.05


def test_nan_names_the_tensor(tmp_path: Path) -> None:
    trained = checkpoint()
    trained["model.norm.weight"][2] = float("nan")
    with pytest.raises(UserError, match=r"model\.norm\.weight"):
        analyze(tmp_path, checkpoint(), trained)


@pytest.mark.parametrize("change", [(3.4e38, 1.0), (1.0, 3.4e38), (3e38, -3e38)])
def test_numbers_at_the_end_of_the_range_are_refused_by_name(tmp_path: Path, change: tuple[float, float]) -> None:
    """Finite as they are stored, infinite in bfloat16 or as a difference."""
    source, trained = (checkpoint() | {"model.norm.weight": torch.full((16,), size)} for size in change)
    with pytest.raises(UserError, match=r"must be a checkpoint .*model\.norm\.weight"):
        analyze(tmp_path, source, trained)


def test_nothing_in_common_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"`trained` must be a checkpoint of the architecture .*4 missing \(model\.emb.*1 extra \(other"
    ):
        analyze(tmp_path, checkpoint(), {"other": torch.zeros(2)})


@pytest.mark.parametrize(("norm", "word"), [(0.05, "large"), (1e-5, "small"), (0.0, "small")])
def test_caveat_outside_the_range(norm: float, word: str) -> None:
    assert word in (caveat(norm) or "")


@pytest.mark.parametrize("norm", [3e-4, 1e-3, 1.5e-3])
def test_no_caveat_inside_the_range(norm: float) -> None:
    assert caveat(norm) is None


def test_shares_are_in_percent_on_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    analyze(tmp_path, checkpoint(), checkpoint())
    assert "100.00%" in capsys.readouterr().out


def test_tensors_of_other_shapes_are_named(tmp_path: Path) -> None:
    wider = {name: torch.zeros(*shape, 2) for name, shape in NAMES.items()}
    with pytest.raises(
        UserError, match=r"no tensor fits: 4 mis-shaped \(model\.embed.* \[40, 16, 2\] against \[40, 16\]"
    ):
        analyze(tmp_path, checkpoint(), wider)
