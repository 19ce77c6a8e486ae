"""Brings the runs of the sparsity study together: at the end, at one accuracy, at one norm, by mask, by optimizer.

    python -m benchmarks.study_sparsity runs/sparsity --plots docs/study_sparsity

Reads what the runs left (metrics.jsonl, config.yaml, and analysis/summary.json where `distill analyze` was run),
prints tables with mean ± standard deviation over seeds, and draws benchmarks/study_sparsity_plots.py. Between two
measurements of a run numbers are interpolated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.study_sparsity_plots import draw
from distill.maskfile import MaskFile
from distill.report.collect import RunRecord, collect
from distill.report.gather import run_dirs

ACCURACY, KL, NORM = "eval/accuracy", "eval/reverse_kl", "update/relative_norm_fp32"
SPARSITY, NULL, SURPLUS = "sparsity/bf16/1e-5", "sparsity_null/bf16/1e-5", "surplus"
SHOWN = {
    ACCURACY: "accuracy",
    KL: "KL to the teacher",
    NORM: "relative norm",
    SPARSITY: "sparsity",
    NULL: "its null",
    SURPLUS: "difference",
}
GEOMETRY = (
    *("top_energy_0.01", "coverage_low_0.1_0", "coverage_principal_0.1_0", "rank_1e-6.median", "stable_rank.median"),
    *("spectral_energy_16.median", "projection_joint_0.1.median", "rotation_left_0.1.median"),
)
Row = Sequence[str]


def kind(run: RunRecord) -> str:
    """What the study calls a run: its recipe, the rule of its mask, or its learning rate under SGD."""
    mask = run.setting("callbacks", "update_mask", "path")
    if mask:
        return f"mask {MaskFile(Path(mask), 'mask').provenance.rule}"
    if run.setting("optimizer", "name") == "sgd":
        return f"sgd lr {run.setting('optimizer', 'lr'):g}"
    return str(run.setting("run_name")).removeprefix("sparsity_")


def series(run: RunRecord, key: str) -> dict[int, float]:
    """A metric by step."""
    if key != SURPLUS:
        return dict(run.series(key))
    null = series(run, NULL)
    return {step: value - null[step] for step, value in series(run, SPARSITY).items() if step in null}


def last(run: RunRecord, key: str) -> float | None:
    return next(reversed(series(run, key).values()), None)


def at(run: RunRecord, key: str, level: float, wanted: str) -> float | None:
    """``wanted`` where ``key`` first reaches ``level``, between the measurements that both have."""
    over, of = series(run, key), series(run, wanted)
    points = [(over[step], value) for step, value in of.items() if step in over]
    for (a, x), (b, y) in itertools.pairwise(points):
        if a < level <= b:
            return x + (y - x) * (level - a) / (b - a)
    return None


def shown(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    digits = ".2e" if abs(known[0]) < 0.01 else ".4f"
    spread = f" ± {statistics.stdev(known):{digits}}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):{digits}}{spread}"


def table(title: str, columns: Row, rows: Iterable[Row]) -> None:
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def halfway(groups: dict[str, list[RunRecord]]) -> None:
    keys = (ACCURACY, KL)
    rows = [
        [name, *(shown(series(run, key).get((run.planned_steps or 0) // 2) for run in runs) for key in keys)]
        for name, runs in groups.items()
    ]
    table("Half way", ["run", *(SHOWN[key] for key in keys)], rows)


def matched(groups: dict[str, list[RunRecord]], key: str, recipes: Sequence[str]) -> None:
    """Every recipe where ``key`` is what the weakest of all their runs ends at."""
    runs = [run for name in recipes for run in groups[name]]
    level = min(last(run, key) or 0.0 for run in runs)
    others = [name for name in SHOWN if name != key]
    rows = [
        [name, *(shown(at(run, key, level, other) for run in groups[name]) for other in others)] for name in recipes
    ]
    table(f"At {SHOWN[key]} {level:.3g}", ["run", *(SHOWN[name] for name in others)], rows)


def geometry(groups: dict[str, list[RunRecord]]) -> None:
    for name, runs in groups.items():
        folders = [run.path / "analysis" / "summary.json" for run in runs]
        found = [json.loads(path.read_text())["metrics"]["bf16"] for path in folders if path.is_file()]
        parts = ("observed", "null", "difference")
        rows = [[metric, *(shown(each[metric][part] for each in found) for part in parts)] for metric in GEOMETRY]
        if found:
            table(f"Geometry of {name}, bf16", ["metric", *parts], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run directories, sweeps or folders of runs")
    parser.add_argument("--plots", type=Path, help="folder for the pictures")
    given = parser.parse_args()
    groups: dict[str, list[RunRecord]] = {}
    for folder in run_dirs(given.runs):
        run = collect(folder)
        groups.setdefault(kind(run), []).append(run)
    ends = [
        [name, str(len(runs)), *(shown(last(run, key) for run in runs) for key in SHOWN)]
        for name, runs in groups.items()
    ]
    starts = shown(run.first(ACCURACY) for runs in groups.values() for run in runs)
    table(f"At the end (accuracy before training: {starts})", ["run", "seeds", *SHOWN.values()], ends)
    halfway(groups)
    recipes = [name for name in ("sft", "offline_kd", "opd") if name in groups]
    if len(recipes) > 1:
        matched(groups, ACCURACY, recipes)
        matched(groups, NORM, recipes)
    geometry(groups)
    if given.plots:
        draw(groups, given.plots)


if __name__ == "__main__":
    main()
