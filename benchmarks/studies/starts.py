"""Speculative distillation against supervised and on-policy, from a weak and from a stronger student.

After SKD (arXiv 2410.11325): supervised suits strong starts less, on-policy weak ones; speculative is to be no worse
than either from both. All three with forward KL, so that they differ in their texts alone.
"""

from __future__ import annotations

from benchmarks.studies.harness import Step, Study, last

COMMON = (*("objective=forward_kl", "optimizer.schedule=linear", "trainer.max_steps=300"),)
STARTS = {"weak": "package://distill/assets/student", "strong": "{root}/strong/model"}
RECIPES = {
    "supervised": ("recipe=offline_kd", "objective.label_weight=0", "objective.logit_weight=1"),
    "on-policy": ("recipe=opd",),
    "speculative": ("recipe=speculative_kd", "rollout.accept_top_k=3"),
}
STUDY = Study(
    question="From a weak and from a stronger student: whose text should the teacher judge?",
    before=(
        Step(
            (
                *("train", "recipe=sft", "trainer.max_steps=400", "callbacks.sparsity=null", "logger.progress=off"),
                *("callbacks.evaluation=null", "hydra.run.dir={root}/strong"),
            ),
            "strong/model",
        ),
    ),
    arms={
        f"{start} {recipe}": (*words, "student=path", f"student.path={path}", *COMMON)
        for start, path in STARTS.items()
        for recipe, words in RECIPES.items()
    },
    pairs=tuple(
        (f"{start} speculative", f"{start} {other}", f"speculative beats {other} from a {start} start")
        for start in STARTS
        for other in ("supervised", "on-policy")
    ),
    measure=last("eval/accuracy"),
    what="accuracy",
)
