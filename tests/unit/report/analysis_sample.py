"""Folders as ``distill analyze`` leaves them, of models of any size, without computing anything."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

COORDINATES = {"sparsity_0": 0.78, "sparsity_1e-5": 0.8, "top_energy_0.001": 0.1, "top_energy_0.01": 0.3}
COORDINATES |= {"enrichment_low_0.1_0": 4.4, "coverage_low_0.1_0": 0.44, "coverage_principal_0.1_0": 0.03}
MATRICES = {"stable_rank": 60.0, "entropy_rank": 480.0, "spectral_energy_1": 0.02, "spectral_energy_16": 0.09}
MATRICES |= {"rank_1e-6": 1.0, "projection_joint_0.1": 0.008, "rotation_left_0.1": 0.02, "spectral_drift": 3e-4}
OTHER = {"overlap_of_trained_1e-5": 0.5, "jaccard_1e-5": 0.3, "observed_over_expected_1e-5": 2.5}
SHIFTS = {"sparsity_1e-5": 1.03, "stable_rank": 0.4, "spectral_energy_16": 2.9, "projection_joint_0.1": 0.7}
"""Observed over null, 1 where not named."""
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def beside(key: str, null: float, draws: int = 5) -> dict[str, float | None]:
    """One metric of ``summary.json``."""
    observed = null * SHIFTS.get(key.removesuffix(".median").removesuffix(".mean"), 1.0)
    if not draws:
        return {"observed": observed, "null": None, "null_sd": None, "difference": None, "z": None}
    sd = None if draws == 1 else 0.001 * null
    z = None if not sd else (observed - null) / sd
    return {"observed": observed, "null": null, "null_sd": sd, "difference": observed - null, "z": z}


def metrics(draws: int = 5, matrices: bool = True, other: bool = False) -> dict[str, dict[str, float | None]]:
    """The metrics of one precision."""
    found = {key: beside(key, null, draws) for key, null in (COORDINATES | (OTHER if other else {})).items()}
    found["relative_norm"] = beside("relative_norm", 9e-4, draws)
    if matrices:
        found |= {f"{key}.{over}": beside(key, x, draws) for key, x in MATRICES.items() for over in ("median", "mean")}
    return found


def summary(draws: int = 5, matrices: bool = True, other: bool = False) -> dict[str, Any]:
    both = {precision: metrics(draws, matrices, other) for precision in ("bf16", "fp32")}
    return {
        "source": "runs/a/source",
        "trained": "runs/a/model",
        "other": "runs/b/model" if other else None,
        "tensors": 272,
        "parameters": 134_515_008,
        "seed": 0,
        "null_draws": draws,
        "metrics": both,
        "groups": {},
        "notes": [],
        "unmatched": {"missing": [], "extra": [], "misshaped": [], "tied": [], "skipped": {}},
    }


def write_analysis(
    folder: Path,
    layers: int = 3,
    *,
    draws: int = 5,
    matrices: bool = True,
    other: bool = False,
    change: dict[str, Any] | None = None,
) -> Path:
    """``change`` replaces entries of the summary."""
    folder.mkdir(parents=True)
    text = json.dumps(summary(draws, matrices, other) | (change or {}))
    (folder / "summary.json").write_text(text, encoding="utf-8")
    noise = np.random.default_rng(0)
    rows = [_row("model", "all", noise, draws, matrices)]
    rows += [_row("group", name, noise, draws, matrices) for name in ("attention", "mlp", "embedding", "norm")]
    modules = [(layer, module) for layer in range(layers) for module in (*MODULES, "input_layernorm")]
    for layer, module in modules:
        rows.append(_row("module", f"{layer}.{module}", noise, draws, matrices and module in MODULES))
    table = [row | {"precision": precision} for row in rows for precision in ("bf16", "fp32")]
    with (folder / "groups.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    if matrices:
        names = [f"model.layers.{layer}.{module}.weight" for layer, module in modules if module in MODULES]
        names.append("model.embed_tokens.weight")
        flat, steep = np.linspace(1, 0.02, 64), np.linspace(1, 0.02, 64) ** 3
        null = flat.tolist() if draws else None
        spectra = {name: {"observed": (steep * noise.uniform(0.9, 1)).tolist(), "null": null} for name in names}
        (folder / "spectra.json").write_text(json.dumps(spectra))
    return folder


def _row(scope: str, name: str, noise: np.random.Generator, draws: int, matrices: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"scope": scope, "name": name, "numel": 4096, "update_norm": 0.5, "relative_norm": 9e-4}
    row["energy_share"] = float(noise.uniform(0, 0.01))
    keys = COORDINATES | {f"{key}.median": value for key, value in MATRICES.items()}
    for key, null in keys.items():
        there = matrices or key in COORDINATES
        shifted = beside(key, null * float(noise.uniform(0.97, 1.03)), draws) if there else {}
        row[key] = shifted.get("observed", "")
        if draws:
            row |= {f"{column}_{key}": shifted.get(column, "") for column in ("null", "null_sd", "difference", "z")}
    return row
