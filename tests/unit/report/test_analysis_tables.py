"""Tables say what the files say: cells with their nulls, layers in order, and gaps where there is nothing."""

from pathlib import Path

import pytest

from distill.report.analysis_charts import Map, maps
from distill.report.analysis_folder import Analysis, Cell, cell, cells, finite, read
from distill.report.analysis_tables import Grid, by_group, families, grid, unmatched
from distill.report.vocabulary import MOVED, RUNS, SHAPE
from tests.unit.report.analysis_sample import summary, write_analysis


def module(name: str, sparsity: str, difference: str = "") -> dict[str, str]:
    head = {"scope": "module", "name": name, "precision": "bf16"}
    return head | {"sparsity_1e-5": sparsity, "difference_sparsity_1e-5": difference}


def test_layers_are_in_order_of_their_number_and_gaps_stay_gaps() -> None:
    rows = [module("10.q_proj", "0.9"), module("2.q_proj", "0.8", "-0.1"), module("2.mlp.c_proj", "0.7")]
    analysis = Analysis({}, groups=[*rows, module("3.q_proj", "")])
    assert grid(analysis, "sparsity_1e-5") == Grid(["q_proj", "mlp.c_proj"], ["2", "10"], [[0.8, 0.9], [0.7, None]])
    assert grid(analysis, "sparsity_1e-5", difference=True) == Grid(["q_proj"], ["2"], [[-0.1]])
    assert grid(analysis, "stable_rank") is None
    names = ("0.ln_1", "0.gate", "0.mlp.c_proj", "0.down_proj", "0.c_attn", "0.q_proj")
    ordered = grid(Analysis({}, groups=[module(name, "1") for name in names]), "sparsity_1e-5")
    assert ordered is not None
    assert ordered.rows == ["q_proj", "down_proj", "c_attn", "mlp.c_proj", "gate"]
    assert grid(Analysis({}), "sparsity_1e-5") is None


def test_a_map_knows_its_colours() -> None:
    one = Map("t", Grid(["q"], ["0", "1", "2"], [[0.2, 0.4, None]]), share=True, diverging=False)
    assert one.limits == (0.2, 0.4)
    assert [one.depth(value) for value in (0.2, 0.3, 0.4)] == pytest.approx([0, 0.5, 1])
    assert one.text(0.345) == "34.5"
    differences = Map("t", Grid(["q"], ["0", "1"], [[-0.02, 0.01]]), share=True, diverging=True)
    assert differences.limits == (-0.02, 0.02)
    assert [differences.depth(value) for value in (-0.02, 0.01, 0.0)] == [1, 0.5, 0]
    assert (differences.text(0.01), differences.text(-0.02)) == ("+1.0", "-2.0")
    assert differences.text(-0.0001) == "+0.0"
    flat = Map("t", Grid(["q"], ["0"], [[0.0]]), share=False, diverging=True)
    assert flat.depth(0.0) == 0
    assert Map("t", Grid(["q"], ["0"], [[3.0]]), share=False, diverging=False).depth(3.0) == 0.5
    assert Map("t", Grid(["q"], ["0"], [[480.4]]), share=False, diverging=False).text(480.4) == "480"


def test_the_maps_of_a_model_are_of_its_modules(tmp_path: Path) -> None:
    found = maps(read(write_analysis(tmp_path / "a", layers=3)))
    assert [one.title for one in found][:2] == ["Did not move", "Did not move, observed − null"]
    assert [len(one.grid.columns) for one in found] == [3] * 5
    assert [len(one.grid.rows) for one in found] == [7] * 5


def test_groups_have_a_row_each_and_matrices_their_median(tmp_path: Path) -> None:
    table = by_group(read(write_analysis(tmp_path / "a", layers=1)), "fp32")
    assert table is not None
    assert [row.name for row in table.rows] == ["all", "attention", "mlp", "embedding", "norm"]
    keys = [what.key for what in table.columns]
    assert "sparsity_1e-5" in keys
    assert "stable_rank.median" in keys
    found = table.rows[0].cells[keys.index("stable_rank.median")]
    assert found is not None
    assert found.null is not None
    assert found.difference == pytest.approx(found.observed - found.null)
    assert by_group(Analysis({}), "bf16") is None


def test_every_known_metric_is_in_its_family_in_both_precisions() -> None:
    found = families(summary(other=True))
    assert [line.what.key for line in found[MOVED]] == ["sparsity_0", "sparsity_1e-5", "relative_norm"]
    assert "stable_rank.mean" in [line.what.key for line in found[SHAPE]]
    assert all(line.bf16 and line.fp32 for lines in found.values() for line in lines)
    assert RUNS in found
    assert RUNS not in families(summary())


def test_undefined_numbers_are_nothing() -> None:
    assert [finite(value) for value in ("", None, "nan", "inf", "x", float("nan"), "0.5", 2)] == [None] * 6 + [0.5, 2.0]
    assert cells({"a": {"observed": None}, "b": {"observed": 1, "z": float("inf")}}) == {"b": Cell(1.0)}
    assert cell({"a": ""}, "a") is None
    assert cell({"a": "1", "null_a": "2", "null_sd_a": "", "z_a": "3"}, "a") == Cell(1, 2, None, None, 3)
    # Equal draws differ by the rounding of their mean.
    assert cell({"a": "0.1", "null_a": "0.1", "difference_a": "1.4e-17"}, "a") == Cell(0.1, 0.1, None, 0.0)


def test_unmatched_tensors_keep_their_reason() -> None:
    assert unmatched({}) == {}
    assert unmatched(summary()) == {}
    left = {"missing": ["a"], "skipped": {"source": ["b"], "trained": []}, "other": {"missing": [], "extra": ["c"]}}
    assert unmatched({"unmatched": left}) == {
        "in the source only": ["a"],
        "skipped in source: no weights of the model": ["b"],
        "of the other run, in the other run only": ["c"],
    }
