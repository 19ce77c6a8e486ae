"""Whether the share of KD that `callbacks.gradient_variance` predicts is the best one for a language model.

The setting that the prediction is about: SGD at a constant rate, small batches, forward KL at temperature 1, judged by
the cross-entropy of held-out answers (the perplexity).
"""

from __future__ import annotations

from benchmarks.studies.addition import EVERY, ONCE, TEACHER, start, started
from benchmarks.studies.harness import ACCURACY, Look, Measure, Study
from distill.report.collect import RunRecord

SHARES = (0.25, 0.5, 0.75, 1.0)
COMMON = (
    *(*started("half"), "data.limit=10000", *EVERY, ONCE, "data.batch_size=16", "trainer.max_steps=400"),
    *("optimizer=sgd", "optimizer.lr=0.1", "optimizer.schedule=constant", "optimizer.warmup_steps=0"),
)
MONITORED = ("recipe=offline_kd", *COMMON, "callbacks.gradient_variance.every_n_steps=50")
WITHOUT = "λ = 0"
TEACHERS = {"strong": TEACHER, "itself": "{root}/half/model"}
"""One that knows what the student does not, and one that knows nothing more: the student as it starts."""


def _mean(key: str) -> Measure:
    def of(run: RunRecord) -> float | None:
        values = [value for _, value in run.series(f"gradient_variance/{key}")]
        return sum(values) / len(values) if values else None

    return of


def _name(teacher: str, share: float) -> str:
    return f"{teacher} λ = {share}"


STUDY = Study(
    question="Which share λ of KD is best for SGD on an LM, and which one does the monitor predict?",
    before=(start("half", 400),),
    arms={WITHOUT: ("recipe=sft", *COMMON)}
    | {
        _name(teacher, share): (
            *MONITORED,
            f"teacher.path={path}",
            f"objective.label_weight={1 - share}",
            f"objective.logit_weight={share}",
        )
        for teacher, path in TEACHERS.items()
        for share in SHARES
    },
    pairs=tuple(
        (_name(teacher, share), WITHOUT, f"λ = {share} with the teacher {teacher} is another than 0")
        for teacher in TEACHERS
        for share in SHARES
    ),
    looks=(
        Look("perplexity", lambda run: run.last("eval/perplexity"), percent=False),
        ACCURACY,
        Look("predicted λ", lambda run: run.last("gradient_variance/lambda_mean"), percent=False),
        Look("λ before limits", _mean("lambda_unclamped"), percent=False),
        Look("upper λ", _mean("lambda_upper"), percent=False),
        Look("variance that would be left", _mean("reduction"), percent=False),
    ),
)
