"""What a cache loses with fewer tokens per position: students of caches of K tokens against those of the live teacher.

The embedded models know 19 tokens, so that K = 19 is everything.
"""

from __future__ import annotations

from benchmarks.studies.addition import TRAIN, start, started
from benchmarks.studies.harness import Step, Study, slug

COMMON = (
    *("recipe=offline_kd", "data.limit=10000", *TRAIN),
    *("objective.label_weight=0", "objective.logit_weight=1", *started("half")),
)
CACHES = {f"K={k}": (f"cache.k={k}",) for k in (1, 2, 4, 8, 19)}
CACHES |= {"K=1, 4 drawn": ("cache.k=1", "cache.draws=4"), "states": ("cache.states=true",)}


STUDY = Study(
    question="How many tokens per position does a cache of the teacher need?",
    before=(
        start("half", 400),
        *(
            Step(("cache", *COMMON, *words, f"cache.out={{root}}/{slug(name)}", "logger.progress=off"), slug(name))
            for name, words in CACHES.items()
        ),
    ),
    arms={"live": COMMON}
    | {
        name: (*COMMON, "teacher=cached", f"teacher.cache={{root}}/{slug(name)}", "teacher.path=null")
        for name in CACHES
    },
    pairs=tuple((name, "live", f"a cache ({name}) teaches as well as the live teacher") for name in CACHES),
)
