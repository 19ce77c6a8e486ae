"""A frozen teacher of images with and without the consensus term: what it adds to offline KD on 300 digits.

The teacher is the ConvNeXt of the other studies, trained on all 1438 digits.
"""

from __future__ import annotations

from benchmarks.studies.harness import ACCURACY, Step, Study
from benchmarks.studies.online import ALONE, DIGITS, STUDENT, TRAIN

FIRST = (
    *("train", "recipe=sft", *ALONE, *TRAIN, "data=digits", "data.batch_size=32"),
    *("data.eval_size=359", "optimizer.lr=3e-3", "trainer.max_steps=600", "seed=1000"),
    *("callbacks.sparsity=null", "callbacks.checkpoint=null", "logger.progress=off"),
    "hydra.run.dir={root}/teacher",
)
KD = ("recipe=offline_kd", STUDENT, "teacher.path={root}/teacher/model", *TRAIN, *DIGITS)
CONSENSUS = ("adm.consensus=1",)
STUDY = Study(
    question="Does the consensus term (our formulation) add to offline KD from a frozen teacher?",
    before=(Step(FIRST, "teacher/model"),),
    arms={
        "sft": ("recipe=sft", STUDENT, *TRAIN, *DIGITS),
        "KD": KD,
        "KD + consensus": (*KD, *CONSENSUS),
        "KD + consensus, all alike": (*KD, *CONSENSUS, "adm.temperature=null"),
        "KD + consensus, sharp": (*KD, *CONSENSUS, "adm.temperature=0.1"),
        "KD + consensus, centred": (*KD, *CONSENSUS, "adm.center=true"),
        "KD + consensus, channels": (*KD, *CONSENSUS, "adm.description=channels"),
        "KD + consensus, classes": (*KD, *CONSENSUS, "adm.description=classes"),
    },
    pairs=(
        ("KD", "sft", "a teacher helps"),
        ("KD + consensus", "KD", "consensus adds to KD"),
        ("KD + consensus, all alike", "KD", "consensus of all places alike adds to KD"),
        ("KD + consensus, all alike", "KD + consensus", "places weighed alike are better than by agreement"),
        ("KD + consensus, sharp", "KD + consensus", "a temperature of 0.1 is another than 0.5"),
        ("KD + consensus, centred", "KD + consensus", "centred features are others than features as they are"),
        ("KD + consensus, centred", "KD", "consensus of centred features adds to KD"),
        ("KD + consensus, channels", "KD + consensus", "channels are another than relations"),
        ("KD + consensus, channels", "KD", "consensus of channels adds to KD"),
        ("KD + consensus, classes", "KD", "consensus of classes adds to KD"),
        ("KD + consensus", "sft", "KD and consensus help"),
    ),
    looks=(ACCURACY,),
)
