"""Shares of one rank, against DeepSpeed's own estimators."""

from __future__ import annotations

import pytest

from distill.planning.memory import ALLOCATOR, Rank, States, on_rank
from distill.planning.tracker import Peak

N, LAYER = 7_000_000_000, 200_000_000
STATES = States(weights=2 * N, trained=N, itemsize=2, largest_layer=2 * LAYER, teacher=1 << 30)
PEAK = Peak({"student weights": 1, "gradients": 1, "optimizer state": 1, "teacher": 1 << 30}, 0)
MODEL_STATES = ("student weights", "gradients", "fp32 masters", "optimizer state")


def terms(
    strategy: str, ranks: int = 8, *, offload: bool = False, placement: str = "replicated", **flags: bool
) -> dict[str, int]:
    rank = Rank(strategy, ranks, offload, placement, "model")
    return on_rank(PEAK, STATES, rank, 2, rollout=False, gpu=True)


def test_model_states_are_close_to_deepspeeds_cold_estimates() -> None:
    stage2 = pytest.importorskip("deepspeed.runtime.zero.stage_1_and_2")
    stage3 = pytest.importorskip("deepspeed.runtime.zero.stage3")
    estimates = {
        "zero2": stage2.estimate_zero2_model_states_mem_needs(N, 8, 1, False, 1)[1],
        "zero3": stage3.estimate_zero3_model_states_mem_needs(N, LAYER, 8, 1, False, False, False, 1)[1],
    }
    for strategy, expected in estimates.items():
        ours = sum(size for name, size in terms(strategy).items() if name in MODEL_STATES)
        assert ours == pytest.approx(expected, rel=0.25), (strategy, ours, expected)


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_more_ranks_need_less_each(strategy: str) -> None:
    assert sum(terms(strategy, 64).values()) < sum(terms(strategy, 8).values())


def test_stages_are_ordered() -> None:
    sums = [sum(terms(strategy)[name] for name in MODEL_STATES) for strategy in ("zero1", "zero2", "zero3")]
    assert sums == sorted(sums, reverse=True)
    assert len(set(sums)) == 3


def test_zero_sums_gradients_in_fp32_whatever_the_weights_are() -> None:
    # The share of the optimizer's fp32 gradients comes on top.
    assert terms("zero1")["gradients"] == 4 * N + 4 * N // 8
    assert terms("zero2")["gradients"] == terms("zero3")["gradients"] == 2 * 4 * N // 8


def test_ddp_copies_gradients_into_buckets() -> None:
    assert terms("ddp")["communication buffers"] == 2 * N
    assert "communication buffers" not in terms("single", 1)


def test_offloading_leaves_no_states_on_the_device() -> None:
    found = terms("zero3", offload=True)
    assert not {"student weights", "optimizer state", "fp32 masters"} & found.keys()


def test_teacher_placement() -> None:
    assert terms("zero2")["teacher"] == STATES.teacher
    assert terms("zero2", placement="sharded")["teacher"] == STATES.teacher // 8
    assert "teacher" not in terms("zero2", placement="offloaded")


def test_the_allocators_share_is_what_is_resident_beyond_tensors() -> None:
    peak = Peak({"student weights": 100, "activations": 50}, 400)
    states = States(100, 25, 4, 10, 0)
    found = on_rank(peak, states, Rank("single", 1, False, "replicated", "model"), 2, rollout=False, gpu=False)
    assert found == {"student weights": 100, "activations": 50, ALLOCATOR: 250}
