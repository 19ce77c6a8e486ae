"""What each recipe costs beside fine-tuning, and how its student gets on: the embedded models, one seed, one thread.

    python -m benchmarks.recipes FOLDER [--steps 600] [--plots docs/recipes] [--only kd_variance,sft_images]

Prints a table for docs/recipes.md (median seconds of a step, peak memory of the process, accuracy at the end) and draws
one picture per recipe: accuracy over steps, beside fine-tuning's, for images that of the same student. A run that is
there is not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from distill.figures import canvas
from distill.report.collect import RunRecord, collect

COMMON = (
    *("callbacks.evaluation.every_n_steps=50", "callbacks.sparsity=null"),
    *("callbacks.checkpoint=null", "logger.progress=off"),
)
TEACHERS = "{embedded: {path: package://distill/assets/teacher}, tuned: {path: {folder}/sft/model}}"
"""The embedded one, and the student of ``sft``, which is trained first."""
SUMS = "data.limit=50000"
SGD = ("optimizer=sgd", "optimizer.lr=0.5", "optimizer.schedule=constant", "optimizer.warmup_steps=0")
RECIPES = {
    "sft": ("recipe=sft",),
    "offline_kd": ("recipe=offline_kd",),
    "offline_kd_cached": ("recipe=offline_kd", "teacher=cached", "teacher.cache={folder}/cache"),
    "opd": ("recipe=opd",),
    "speculative_kd": ("recipe=speculative_kd", "rollout.accept_top_k=3"),
    "self_distillation": ("recipe=self_distillation",),
    "multi_teacher": ("recipe=multi_teacher", f"teacher.members={TEACHERS}"),
    "effopd": ("callbacks=effopd",),
    "subnetwork": ("recipe=[sft,subnetwork]", "callbacks.update_mask.path={folder}/mask.safetensors"),
    "two_stage": ("recipe=two_stage",),
    "online_kd": ("recipe=online_kd",),
    "online_adm": ("recipe=online_adm",),
    "online_lora": ("recipe=online_lora",),
}
RECIPES = {name: (*words, SUMS) for name, words in RECIPES.items()}
IMAGES = {
    "sft_images": (
        *("recipe=sft", "task=image_classification", "student=mlp", *SGD, "optimizer.weight_decay=1e-3"),
        *("data.batch_size=10", "data.mean=[0]", "data.std=[1]", "trainer.gradient_clip_val=null"),
    ),
    "kd_variance": ("recipe=kd_variance", "teacher.path={folder}/best", "variance_reduction.weight=0.7"),
}
RUN = "import json, resource, sys; from distill import cli; status = cli.main(json.loads(sys.argv[1])); \
print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"


def distill(*words: str) -> float:
    """Runs one command in a process of its own; its peak memory in MB."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(words)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"distill {' '.join(words)}\n{done.stdout}{done.stderr}")
    return float(done.stdout.split("peak ")[-1]) / 1024


def prepare(folder: Path) -> None:
    """The cache of ``offline_kd_cached``, the teacher of ``kd_variance``, and the mask of ``subnetwork``, from a short
    run of fine-tuning."""
    if not (folder / "cache" / "manifest.json").exists():
        distill("cache", "recipe=offline_kd", SUMS, f"cache.out={folder}/cache", "logger.progress=off")
    if not (folder / "mask.safetensors").exists():
        distill(
            "train", "recipe=sft", *COMMON, SUMS, "trainer.max_steps=30", f"hydra.run.dir={folder}/short", "resume=auto"
        )
        paths = (f"source={folder}/short/source", f"trained={folder}/short/model")
        distill("mask", "rule=low", paths[0], "density=0.2", f"out={folder}/mask.safetensors")
    if not (folder / "best").exists():
        subprocess.run([sys.executable, "-m", "benchmarks.near_optimal", str(folder / "best")], check=True)


def seconds(run: RunRecord) -> float:
    """The median of all steps, rollouts included: the few that are evaluated do not move it."""
    return statistics.median(value for _, value in run.series("time/step"))


def baseline(name: str) -> str:
    """The recipe that one is compared with: fine-tuning of the same student."""
    return "sft_images" if name in IMAGES else "sft"


def train(name: str, words: Sequence[str], folder: Path) -> tuple[RunRecord, float | None]:
    """The run, and its peak memory in MB, unless it was trained by a call that was stopped."""
    run_dir, note = folder / name, folder / f"{name}.peak"
    if not (run_dir / "model" / "config.json").exists():
        words = [*words, f"hydra.run.dir={run_dir}", "resume=auto"]
        note.write_text(str(distill("train", *words)), encoding="utf-8")
    return collect(run_dir), float(note.read_text(encoding="utf-8")) if note.exists() else None


def draw(name: str, run: RunRecord, beside: RunRecord, path: Path) -> None:
    figure = canvas.sheet(5.2, 2.6)
    axes = figure.subplots()
    lines = [(run, canvas.OBSERVED, name)]
    if run is not beside:
        lines.insert(0, (beside, canvas.MUTED, "sft"))
    for record, colour, label in lines:
        points = record.series("eval/accuracy")
        axes.plot(*zip(*[(step, 100 * value) for step, value in points], strict=True), "o-", color=colour, label=label)
    teacher = run.series("eval/teacher_accuracy")
    if len({value for _, value in teacher}) == 1:
        axes.axhline(100 * teacher[0][1], color=canvas.NULL, linestyle=":", label="teacher")
    elif teacher:
        steps, values = zip(*[(step, 100 * value) for step, value in teacher], strict=True)
        axes.plot(steps, values, ":", color=canvas.NULL, label="teacher, as it is then")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("accuracy, %")
    axes.legend(fontsize=8, frameon=False)
    canvas.dress(axes)
    canvas.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--plots", type=Path, help="folder for the pictures")
    parser.add_argument("--only", help="names between commas, with what they are compared with")
    given = parser.parse_args()
    folder = given.folder.absolute()
    recipes = RECIPES | IMAGES
    names = given.only.split(",") if given.only else list(recipes)
    prepare(folder)
    found: dict[str, tuple[RunRecord, float | None]] = {}
    for name in names:
        words = recipes[name]
        line = [word.replace("{folder}", str(folder)) for word in words]
        steps = f"trainer.max_steps={given.steps}"
        found[name] = train(name, [*line, *COMMON, steps], folder)
    print("| recipe | seconds per step | × sft | peak memory, MB | accuracy at the end |\n|---|--:|--:|--:|--:|")
    for name, (run, peak) in found.items():
        sft = found[baseline(name)][0]
        each, accuracy = seconds(run), run.last("eval/accuracy") or 0.0
        print(f"| {name} | {each:.3g} | {each / seconds(sft):.2f} | {peak or math.nan:.0f} | {100 * accuracy:.1f} % |")
        if given.plots:
            given.plots.mkdir(parents=True, exist_ok=True)
            draw(name, run, sft, given.plots / f"{name}.png")


if __name__ == "__main__":
    main()
