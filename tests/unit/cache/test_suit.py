"""Which objectives a cache serves: as they are, over the top K, or not at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distill.cache.manifest import Provenance
from distill.cache.suit import suited
from distill.config.schema import Objective
from distill.errors import UserError

MADE = Provenance(
    *("m", None, None, "w", "float32", "t", None, 100, "d", "e", 5, "all 5", "i"), *(2.0, 8, 0, 0, False, "float32", 4)
)


def objective(divergence: str, **changes: Any) -> dict[str, Any]:
    return Objective(divergence=divergence, temperature=2.0, k=4, **changes).model_dump()


@pytest.mark.parametrize("divergence", ["topk_forward_kl", "topk_reverse_kl"])
def test_the_top_k_is_served_up_to_the_cached_k(divergence):
    asked = objective(divergence, tail="renormalise")
    assert suited(MADE, asked) == asked
    with pytest.raises(UserError, match=r"`objective.k` must be at most 8.* is 9"):
        suited(MADE, asked | {"k": 9})
    with pytest.raises(UserError, match=r"`objective.topk_from` must be 'teacher'"):
        suited(MADE, asked | {"topk_from": "student"})


@pytest.mark.parametrize(("full", "part"), [("forward_kl", "topk_forward_kl"), ("reverse_kl", "topk_reverse_kl")])
def test_a_full_kl_is_taken_over_the_top_k_and_a_bucket(full, part):
    found = suited(MADE, objective(full, tail="truncate", topk_from="student"))
    assert found == objective(full) | {"divergence": part, "k": 8}


def test_a_drawn_rest_is_for_the_forward_kl_alone():
    drawn = replace(MADE, draws=4)
    assert suited(drawn, objective("forward_kl")) == objective("forward_kl")
    for other in ("reverse_kl", "topk_forward_kl", "jsd"):
        with pytest.raises(UserError, match=rf"`objective.divergence` must be 'forward_kl' .*'{other}'"):
            suited(drawn, objective(other))


@pytest.mark.parametrize("divergence", ["jsd", "skew_forward_kl", "total_variation", "pearson", "spearman"])
def test_what_takes_the_whole_vocabulary_takes_a_whole_cache(divergence):
    with pytest.raises(UserError, match=rf"`objective.divergence` must be one of forward_kl.*8 of 100.*'{divergence}'"):
        suited(MADE, objective(divergence))
    for whole in (replace(MADE, k=100), replace(MADE, k=0, states=True)):
        assert suited(whole, objective(divergence)) == objective(divergence)


def test_the_temperature_is_the_caches_unless_it_holds_states():
    other = objective("forward_kl") | {"temperature": 1.0}
    with pytest.raises(UserError, match=r"`objective.temperature` must be 2.0.* is 1.0"):
        suited(MADE, other)
    assert suited(replace(MADE, k=0, states=True), other) == other


def test_labels_alone_ask_nothing():
    asked = objective("jsd") | {"logit_weight": 0.0, "temperature": 1.0}
    assert suited(MADE, asked) == asked
