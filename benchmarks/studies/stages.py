"""Two stages, in both orders and mixed (arXiv 2606.22942): much text of the teacher, few annotated rows.

Stage 1 has the teacher's answers to 5000 sums, with its mistakes; stage 2 the true answers to 300.
"""

from __future__ import annotations

from benchmarks.studies.addition import SHAPE, start, started
from benchmarks.studies.harness import Step, Study

ROWS = 300
LABELLED = "{root}/labelled"
WRITE = ("label", "data.limit=5000", "label.verify=false", "sampling.max_new_tokens=8", f"out={LABELLED}")
COMMON = (*started("half"), *SHAPE, "optimizer.lr=1e-3")
TEXT = ("stages.synthetic.data.source=text", f"stages.synthetic.data.path={LABELLED}/rows.jsonl")
STAGES = ("recipe=two_stage", *COMMON, *TEXT, f"stages.annotated.data.limit={ROWS}", "trainer.max_steps=200")
ONE = ("recipe=offline_kd", *COMMON, "trainer.max_steps=400")
STUDY = Study(
    question="Distillation on the teacher's text first, annotated rows first, or both at once?",
    before=(
        start("half", 400),
        Step(WRITE, "labelled/manifest.json"),
    ),
    arms={
        "two stages": STAGES,
        "reversed": (*STAGES, "stages_order=reversed"),
        "mixed": (*STAGES, "stages_order=mixed"),
        "annotated alone": (*ONE, f"data.limit={ROWS}"),
    },
    pairs=tuple(
        ("two stages", other, f"two stages beat {other}") for other in ("reversed", "mixed", "annotated alone")
    ),
)
