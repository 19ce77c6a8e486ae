"""Speculative distillation against supervised and on-policy, from a weak and from a stronger student.

After SKD (arXiv 2410.11325): supervised suits strong starts less, on-policy weak ones; speculative is to be no worse
than either from both. All three with forward KL, so that they differ in their texts alone.
"""

from __future__ import annotations

from benchmarks.studies.addition import TRAIN, start, started
from benchmarks.studies.harness import Study

STARTS = {"weak": 250, "strong": 1000}
RECIPES = {
    "supervised": ("recipe=offline_kd", "objective.label_weight=0", "objective.logit_weight=1"),
    "on-policy": ("recipe=opd", "objective=forward_kl"),
    "speculative": ("recipe=speculative_kd", "objective=forward_kl", "rollout.accept_top_k=3"),
}
STUDY = Study(
    question="From a weak and from a stronger student: whose text should the teacher judge?",
    before=tuple(start(name, steps) for name, steps in STARTS.items()),
    arms={
        f"{name} {recipe}": (*words, *started(name), "data.limit=10000", *TRAIN)
        for name in STARTS
        for recipe, words in RECIPES.items()
    },
    pairs=tuple(
        (f"{name} speculative", f"{name} {other}", f"speculative beats {other} from a {name} start")
        for name in STARTS
        for other in ("supervised", "on-policy")
    ),
)
