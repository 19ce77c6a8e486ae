"""The consensus term on texts, at the targets of a row: what it adds to offline KD on three-digit addition."""

from __future__ import annotations

from benchmarks.studies.addition import TRAIN, start, started
from benchmarks.studies.harness import Study

KD = (
    *("recipe=offline_kd", "data.limit=10000", *TRAIN),
    *("objective.label_weight=0", "objective.logit_weight=1", *started("half")),
)
CONSENSUS = (*KD, "adm.consensus=1")
STUDY = Study(
    question="Does the consensus term (our formulation) add to offline KD of a language model?",
    before=(start("half", 400),),
    arms={
        "KD": KD,
        "KD + consensus": CONSENSUS,
        "KD + consensus, relations": (*CONSENSUS, "adm.description=relations"),
        "KD + consensus, relations, centred": (*CONSENSUS, "adm.description=relations", "adm.center=true"),
    },
    pairs=(
        ("KD + consensus", "KD", "consensus adds to KD"),
        ("KD + consensus, relations", "KD", "consensus of relations adds to KD"),
        ("KD + consensus, relations, centred", "KD", "consensus of relations of centred states adds to KD"),
        ("KD + consensus, relations", "KD + consensus", "relations are others than channels"),
    ),
)
