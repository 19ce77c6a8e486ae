"""What the studies of online distillation of images share: two small networks, few rows, what is looked at.

A vision transformer learns beside a ConvNeXt, both from random weights. Alone, the first is far behind the second on as
few rows as these, so that there is something to be had from a teacher.
"""

from __future__ import annotations

from benchmarks.studies.harness import Look, Study
from distill.report.collect import RunRecord

DIGITS = (
    "data=digits",
    "data.limit=300",
    "data.batch_size=32",
    "data.eval_size=359",
    "trainer.max_steps=300",
    "optimizer.lr=3e-3",
)
"""All 359 held-out digits."""
FASHION = (
    *("data=fashion_mnist", "data.image_size=14", "data.limit=300", "data.batch_size=32", "data.eval_size=1000"),
    *("trainer.max_steps=400", "optimizer.lr=1e-2"),
)
"""At half their size, which costs a quarter. At the digits' learning rate the student is at 39 % after 300 steps."""
TRAIN = ("task=image_classification", "optimizer.schedule=cosine", "callbacks.evaluation.every_n_steps=100000")
STUDENT = "student=vit_tiny"
TEACHER_ALONE = "teacher alone"
NETWORK = "{{model_type: convnext, patch_size: 2, num_stages: 1, hidden_sizes: [32], depths: [2]}}"
"""One stage, so that its last map has as many places as the student has patches: 4 by 4 of digits, 7 by 7 of clothes.
Braces are doubled for the harness."""
TEACHER = ("teacher.path=null", f"teacher.config={NETWORK}")
ALONE = (f"student.config={NETWORK}",)
"""The same network, trained as a student."""
METHODS = ("dml", "kdcl", "switokd")


def beside(recipe: str, method: str) -> tuple[str, ...]:
    """The words of a student and a teacher that learn together: ``online_kd``, or ``online_adm`` with its defaults."""
    return (f"recipe={recipe}", f"online.method={method}", STUDENT, *TEACHER, "online.export=true")


def student_accuracy(run: RunRecord) -> float | None:
    return None if run.path.name.startswith("teacher_alone") else run.last("eval/accuracy")


def teacher_accuracy(run: RunRecord) -> float | None:
    return run.last("eval/accuracy" if run.path.name.startswith("teacher_alone") else "eval/teacher_accuracy")


LOOKS = (Look("student's accuracy", student_accuracy), Look("teacher's accuracy", teacher_accuracy))


def study(question: str, *data: str) -> Study:
    """Each of the methods with and without ADM, and both networks alone."""
    common = (*TRAIN, *data)
    arms = {
        "student alone": ("recipe=sft", STUDENT, *common),
        TEACHER_ALONE: ("recipe=sft", *ALONE, *common),
    }
    for method in METHODS:
        arms[method] = (*beside("online_kd", method), *common)
        arms[f"{method} + ADM"] = (*beside("online_adm", method), *common)
    pairs = [(f"{method} + ADM", method, f"ADM adds to {method}") for method in METHODS]
    for alone in ("student alone", TEACHER_ALONE):
        who = alone.split()[0]
        pairs += [(name, alone, f"{name}: better than the {who} alone") for name in arms if not name.endswith("alone")]
    return Study(question=question, arms=arms, pairs=tuple(pairs), looks=LOOKS)
