"""Every metric that an analysis writes has a name in words and a way to be written."""

import pytest

from distill.report.findings import SUBJECTS
from distill.report.vocabulary import FAMILIES, present, quantity

RHO, SIDES = ("0.01", "0.05", "0.1", "0.2"), ("joint", "left", "right")
MASKS = ("principal", "low", "principal_not_low", "not_principal_or_low")
KEYS = [
    *("numel", "update_norm", "relative_norm", "energy_share", "stable_rank", "entropy_rank"),
    *("spectral_drift", "spectral_drift_per_update"),
    *(f"sparsity_{label}" for label in ("0", "1e-8", "1e-7", "1e-6", "1e-5", "1e-4")),
    *(f"top_energy_{part}" for part in ("0.001", "0.01", "0.05")),
    *(f"{m}_{r}_{rho}_{a}" for m in ("coverage", "enrichment") for r in MASKS for rho in RHO for a in ("0", "1e-05")),
    *(f"coverage_{r}_{rho}_1e-5" for r in MASKS for rho in RHO),
    *(f"rank_{part}" for part in ("1e-6", "1e-5", "1e-4")),
    *(f"spectral_energy_{k}" for k in (1, 2, 4, 8, 16, 32, 64)),
    *(f"projection_{side}_{rho}" for side in SIDES for rho in RHO),
    *(f"rotation_{side}_{rho}" for side in SIDES[1:] for rho in RHO),
    *(f"{m}_{a}" for m in ("overlap_of_trained", "overlap_of_other", "jaccard") for a in ("0", "1e-5")),
    "observed_over_expected_1e-5",
]


@pytest.mark.parametrize("key", KEYS)
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


def test_every_subject_of_a_finding_is_known() -> None:
    assert all(quantity(key) for key in SUBJECTS)
