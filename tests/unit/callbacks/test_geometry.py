"""When geometry is measured, what is recorded and left in the folder, and that a resumed run leaves the same."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from statistics import fmean, median
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill.callbacks.geometry import HEADLINE, KEYS, LOCKING, TABLE, Geometry
from distill.commands.train import run
from distill.errors import RunError, UserError
from tests import tiny
from tests.unit.callbacks.test_sparsity import Module, fit, llama

MATRICES = 15


@pytest.fixture
def source(tmp_path: Path) -> Path:
    llama().save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def geometry(source: Path, **options: Any) -> Geometry:
    return Geometry(source, source.parent / "geometry", **{"every_n_steps": 2, "matrices": "all", "seed": 0, **options})


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def trained(source: Path, steps: int = 5, **options: Any) -> Module:
    module = Module(llama(), lr=1e-3)
    fit(module, geometry(source, **options), steps)  # type: ignore[arg-type]
    return module


def test_measures_once_per_multiple_and_at_the_end(source: Path) -> None:
    module = trained(source)
    assert list(module.records) == [2, 4, 5]
    names = sorted(path.name for path in (source.parent / "geometry").iterdir())
    steps = [f"step_{step:06d}" for step in (2, 4, 5)]
    assert names == ["locking.csv", *(f"{step}.{kind}" for step in steps for kind in ("csv", "safetensors"))]


def test_records_what_it_documents(source: Path) -> None:
    record = trained(source).records[5]
    measures = "|".join(re.escape(metric) for metric in HEADLINE)
    patterns = []
    for key in KEYS:
        pattern = re.escape(key).replace("MEASURE", f"({measures})")
        patterns.append(re.sub("PRECISION|GROUP|STEP", "[^/]+", pattern))
    for key in record:
        assert any(re.fullmatch(pattern, key) for pattern in patterns), key
    for pattern in patterns:
        assert any(re.fullmatch(pattern, key) for key in record), pattern
    assert record["geometry/matrices"] == MATRICES, "tiny matrices count where there are no others"


def test_metrics_are_means_and_medians_of_the_table(source: Path) -> None:
    record = trained(source).records[4]
    rows = table(source.parent / "geometry/step_000004.csv")
    assert tuple(rows[0]) == TABLE
    assert len(rows) == 2 * MATRICES
    for precision in ("bf16", "fp32"):
        values = [float(row["stable_rank"]) for row in rows if row["precision"] == precision]
        assert record[f"geometry/{precision}/stable_rank.median"] == pytest.approx(median(values), rel=1e-12)
        nulls = [float(row["null_rotation_left_0.1"]) for row in rows if row["precision"] == precision]
        assert record[f"geometry/{precision}/null_rotation_left_0.1.mean"] == pytest.approx(fmean(nulls), rel=1e-12)
    mlp = [float(r["spectral_drift"]) for r in rows if r["group"] == "mlp" and r["precision"] == "bf16"]
    assert record["geometry/group/mlp/spectral_drift.median"] == pytest.approx(median(mlp), rel=1e-12)


def test_numbers_are_those_of_the_weights(source: Path) -> None:
    module = trained(source)
    name = "model.layers.1.mlp.down_proj.weight"
    update = (dict(module.student.named_parameters())[name] - dict(llama().named_parameters())[name]).detach()
    values = torch.linalg.svdvals(update.double()).square()
    rows = table(source.parent / "geometry/step_000005.csv")
    [row] = [row for row in rows if row["name"] == name and row["precision"] == "fp32"]
    assert float(row["stable_rank"]) == pytest.approx(float(values.sum() / values[0]), rel=1e-4)
    assert (row["rows"], row["columns"], row["layer"], row["module"]) == ("8", "12", "1", "down_proj")


def test_locking_is_the_similarity_of_saved_directions(source: Path) -> None:
    module = trained(source)
    folder = source.parent / "geometry"
    saved = {step: load_file(folder / f"step_{step:06d}.safetensors") for step in (2, 4, 5)}
    rows = table(folder / "locking.csv")
    assert tuple(rows[0]) == LOCKING
    assert len(rows) == 3 * MATRICES

    def alike(name: str, one: int, other: int) -> float:
        first, last = saved[one][name].double(), saved[other][name].double()
        return float((first.T @ last).square().sum()) / first.shape[1]

    for row in rows:
        name, step = row["name"], int(row["step"])
        assert float(row["similarity_to_final"]) == pytest.approx(alike(name, step, 5), rel=1e-5)
        if step == 2:
            assert row["similarity_to_previous"] == ""
        else:
            assert float(row["similarity_to_previous"]) == pytest.approx(
                alike(name, step, {4: 2, 5: 4}[step]), rel=1e-5
            )
        assert float(row["chance"]) == saved[step][name].shape[1] / saved[step][name].shape[0]
    names = list(saved[2])
    expected = fmean(alike(name, 2, 5) for name in names)
    assert module.records[5]["geometry/similarity_to_final/2"] == pytest.approx(expected, rel=1e-5)
    assert "geometry/similarity_to_final/5" not in module.records[5]
    expected = fmean(alike(name, 2, 4) for name in names)
    assert module.records[4]["geometry/similarity_to_previous"] == pytest.approx(expected, rel=1e-5)


def test_a_sample_is_what_its_matrices_are_among_all(source: Path) -> None:
    trained(source, matrices=3)
    drawn = table(source.parent / "geometry/step_000004.csv")
    assert len(drawn) == 6
    trained(source)
    everything = table(source.parent / "geometry/step_000004.csv")
    assert [row for row in everything if row["name"] in {r["name"] for r in drawn}] == drawn


def test_a_student_that_does_not_move_has_no_spectrum(source: Path) -> None:
    module = Module(llama(), lr=0.0)
    fit(module, geometry(source), 2)  # type: ignore[arg-type]
    record = module.records[2]
    assert not any("stable_rank" in key for key in record)
    assert record["geometry/bf16/spectral_drift.median"] == pytest.approx(0, abs=1e-6)
    assert load_file(source.parent / "geometry/step_000002.safetensors") == {}


def test_a_resumed_run_leaves_what_the_uninterrupted_one_does(tmp_path: Path) -> None:
    def go(name: str, **changes: Any) -> list[dict[str, float]]:
        options = {"every_n_steps": 2, "matrices": 4}
        changes = {"callbacks__sparsity": None, "callbacks__evaluation": None, **changes}
        assert run(tiny.config("sft", callbacks__geometry=options, **changes), tmp_path / name) == 0
        return tiny.metrics(tmp_path / name)

    whole = go("whole")
    go("cut", trainer__max_steps=3, callbacks__checkpoint={"every_n_steps": 2})
    leftovers = tmp_path / "cut/geometry"
    for name in ("step_000005.csv", "step_000005.safetensors"):
        (leftovers / name).write_bytes((leftovers / name.replace("5", "3")).read_bytes())
    moved = go("moved", resume=str(tmp_path / "cut/checkpoints/step-00000002"))
    resumed = go("cut", resume=str(tmp_path / "cut/checkpoints/step-00000002"))
    kept = [{k: v for k, v in r.items() if k.startswith("geometry/")} for r in whole]
    assert [{k: v for k, v in r.items() if k.startswith("geometry/")} for r in moved] == kept[-len(moved) :]
    assert [{k: v for k, v in r.items() if k.startswith("geometry/")} for r in resumed] == kept
    assert sum(bool(record) for record in kept) == 3
    files = sorted(path.name for path in (tmp_path / "whole/geometry").iterdir())
    for folder in (leftovers, tmp_path / "moved/geometry"):
        assert sorted(path.name for path in folder.iterdir()) == files
        for file in files:
            assert (folder / file).read_bytes() == (tmp_path / "whole/geometry" / file).read_bytes(), file


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        trained(tmp_path / "nowhere")


def test_nan_names_the_matrix_and_the_step(source: Path) -> None:
    module, callback = Module(llama()), geometry(source)
    trainer: Any = SimpleNamespace(global_step=2, max_steps=9, should_stop=False, is_global_zero=True)
    callback.setup(trainer, module, "fit")
    with torch.no_grad():
        module.student.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(RunError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*step 2"):
        callback.on_step(trainer, module, 2)


def test_a_signal_brings_no_measurement_that_the_uninterrupted_run_does_not_have(source: Path) -> None:
    module, callback = Module(llama()), geometry(source, every_n_steps=4)
    trainer: Any = SimpleNamespace(global_step=3, max_steps=9, should_stop=True, is_global_zero=True)
    callback.setup(trainer, module, "fit")
    callback.on_step(trainer, module, 3)
    assert module.records == {}
