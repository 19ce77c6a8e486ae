"""Which objectives a cache can serve, and what the others become or are refused for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from distill.cache.manifest import Provenance
from distill.errors import UserError

log = logging.getLogger(__name__)

IN_BUCKETS = {"forward_kl": "topk_forward_kl", "reverse_kl": "topk_reverse_kl"}
"""What a divergence over the whole vocabulary becomes where only the top K and the mass of the rest are known."""


def suited(made: Provenance, objective: Mapping[str, Any]) -> dict[str, Any]:
    """The ``objective`` section as it can be had from this cache.

    Hidden states, and K as large as the vocabulary, serve any objective. Else a `topk_*` one is exact up to the cached
    K, and the full KLs are taken over the top K and one bucket for the rest. Where the rest was drawn there is the
    forward KL alone, whose gradient is that of the full one in expectation.

    Raises:
        UserError: naming the key of the objective that the cache was not made for.
    """
    found = dict(objective)
    if found["logit_weight"] == 0 or made.states:
        return found
    if found["temperature"] != made.temperature:
        raise UserError("objective.temperature", found["temperature"], f"{made.temperature}, as in the teacher's cache")
    if made.k >= made.vocab_size:
        return found
    name = found["divergence"]
    if made.draws:
        if name != "forward_kl":
            raise UserError("objective.divergence", name, "'forward_kl' with a cache of drawn tokens (cache.draws)")
        return found
    if name in IN_BUCKETS:
        log.info("the teacher's cache holds %d tokens and the mass of the rest: %s", made.k, IN_BUCKETS[name])
        return found | {"divergence": IN_BUCKETS[name], "k": made.k, "tail": "bucket", "topk_from": "teacher"}
    if name not in IN_BUCKETS.values():
        allowed = ", ".join((*IN_BUCKETS, *IN_BUCKETS.values()))
        allowed = f"one of {allowed} with a cache of {made.k} of {made.vocab_size} tokens (or cache.states=true)"
        raise UserError("objective.divergence", name, allowed)
    if found["topk_from"] != "teacher":
        raise UserError("objective.topk_from", found["topk_from"], "'teacher' with a cache of the teacher's top K")
    if found["k"] > made.k:
        raise UserError("objective.k", found["k"], f"at most {made.k}, the tokens that the cache keeps")
    return found
