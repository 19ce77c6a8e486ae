"""Every metric that an analysis writes has a name in words and a way to be written."""

import pytest

from distill.analysis.scopes import OF_SCOPE
from distill.report.analysis_charts import CHARTED, MULTIPLES, SHARES
from distill.report.analysis_tables import BY_GROUP
from distill.report.findings import SUBJECTS
from distill.report.vocabulary import FAMILIES, present, quantity


@pytest.mark.parametrize("key", OF_SCOPE)
def test_a_metric_has_a_name_with_nothing_left_to_fill_in(key: str) -> None:
    what = quantity(key)
    assert what is not None
    assert what.family in FAMILIES
    assert "{" not in what.name + what.short
    assert len(what.short) <= 45


def test_names_say_the_parameters() -> None:
    for key, name in {
        "sparsity_1e-5": "did not move, |Δ| ≤ 1e-5",
        "coverage_principal_not_low_0.1_1e-5": "of the weights that moved (|Δ| > 1e-5), "
        "those in the principal but not small 10 %",
        "top_energy_0.001": "energy in the 0.1 % of weights that moved most",
        "stable_rank.median": "stable rank (median)",
        "rank_1e-6.mean": "rank, σ > 1e-6·σ₁, of the smaller side (mean)",
    }.items():
        what = quantity(key)
        assert what is not None
        assert what.name == name


def test_what_is_not_known_has_no_name() -> None:
    assert quantity("speed") is None
    assert quantity("sparsity_") is None
    assert quantity("coverage_high_0.1_0") is None


def test_a_metric_of_matrices_is_found_by_its_median() -> None:
    assert present({"stable_rank.median"}, "stable_rank") == "stable_rank.median"
    assert present({"stable_rank.median", "stable_rank"}, "stable_rank") == "stable_rank"
    assert present({"stable_rank.mean"}, "stable_rank") is None


def test_what_is_told_and_drawn_is_measured() -> None:
    for key in (*SUBJECTS, *SHARES, *MULTIPLES, *BY_GROUP, *CHARTED):
        assert present(OF_SCOPE, key), key
