"""Extrapolation on two gloo processes: the decisions and weights of one process, whatever strategy and precision.

Two micro-batches of different sizes are accumulated on each rank; matrices of the 8-wide student are small enough to be
gathered all the time under ZeRO-3, those of the 16-wide one are not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill.commands import export
from distill.commands.train import run
from tests import masks, tiny
from tests.distributed import extrapolating
from tests.distributed.parity import STRATEGIES
from tests.distributed.worker import launch
from tests.integration.test_extrapolation import accepted
from tests.integration.test_extrapolation import settings as common

pytestmark = pytest.mark.timeout(600)
STEPS, SAVED = 5, 3
WIDE = {"student__config": tiny.llama(16), "teacher__config": tiny.llama(24)}
SHARDED_TEACHER = "zero3_sharded_teacher"
FP32: dict[str, dict[str, Any]] = {name: STRATEGIES[name] for name in ("ddp", "zero1", "zero2", "zero3")}
FP32 |= {"zero3_wide": {**STRATEGIES["zero3"], **WIDE}}
FP32 |= {SHARDED_TEACHER: {**STRATEGIES["zero3"], "teacher__placement": "sharded"}}
BF16: dict[str, dict[str, Any]] = {f"{name}_bf16": STRATEGIES[name] for name in ("zero1", "zero2", "zero3_offload")}
BF16 |= {"zero3_wide_bf16": FP32["zero3_wide"]}
MASKED = ("zero2", "zero1_bf16")
"""Cases that are also trained inside of a mask."""
SAME = ("zero2", "zero3_wide_bf16")
BREAKS = "zero3_wide"
OTHER = [("zero1", "single")]
"""A run of two ranks, and the strategy of one that resumes it from the middle."""


class Runs:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mask = masks.write(folder / "mask", tiny.config("opd"), 0.3)

    def settings(self, case: str, **changes: Any) -> dict[str, Any]:
        name, _, masked = case.partition("-")
        chosen = {} if name == "single" else {"trainer__micro_batch_size": 4, **(FP32 | BF16)[name]}
        chosen = {"trainer__precision": "bf16-mixed"} | chosen if name in BF16 else chosen
        inside = {"callbacks__update_mask": {"path": str(self.mask)}} if masked else {}
        saved = {"callbacks__checkpoint": {"every_n_steps": SAVED, "keep_last": 9}, "trainer__max_steps": STEPS}
        return common(self.folder, **{**saved, **chosen, **inside, **changes})

    def again(self, case: str, strategy: str) -> dict[str, Any]:
        return self.settings(strategy, resume=str(self.folder / case / "checkpoints" / f"step-{SAVED:08d}"))

    def masters(self, name: str) -> dict[str, torch.Tensor]:
        out = self.folder / "masters" / name
        if not out.exists():
            assert (
                export.run(
                    {"network": "student", "checkpoint": str(self.folder / name), "out": str(out), "dtype": "float32"},
                    out,
                )
                == 0
            )
        return load_file(out / "model.safetensors")

    def alone(self, case: str) -> Path:
        """What a case has to equal: one process, on whole batches."""
        kind = "wide" if case.endswith("_wide") else "masked" if case.endswith("-masked") else "plain"
        path = self.folder / f"single-{kind}"
        if not path.exists():
            changes = WIDE if kind == "wide" else {}
            assert run(self.settings("single-masked" if kind == "masked" else "single", **changes), path) == 0
        return path

    def watched(self, name: str) -> list[list[dict[str, Any]]]:
        """By rank."""
        return [json.loads((self.folder / name / f"watched-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    torch.set_num_threads(1)
    found = Runs(tmp_path_factory.mktemp("extrapolated"))
    names = [*FP32, *BF16, *(f"{name}-masked" for name in MASKED)]
    together = [(found.settings(name), str(found.folder / name)) for name in names]
    together += [(found.again(name, name), str(found.folder / f"{name}to{name}")) for name in SAME]
    together.append((found.settings(BREAKS, trainer__max_steps=2), str(found.folder / extrapolating.BROKEN)))
    launch(together, found.folder, extrapolating.train_all)
    for pair in OTHER:
        assert run(found.again(*pair), found.folder / "to".join(pair)) == 0
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize("case", [*FP32, *(f"{name}-masked" for name in MASKED if name not in BF16)])
def test_two_ranks_decide_and_end_as_one_process(case: str, runs: Runs) -> None:
    alone, together = runs.alone(case), runs.folder / case
    assert accepted(together) == accepted(alone)
    assert max(accepted(alone)) > 0
    for ours, theirs in zip(tiny.metrics(together), tiny.metrics(alone), strict=True):
        for key in theirs:
            if key.startswith("extrapolation/"):
                assert ours[key] == pytest.approx(theirs[key], abs=2e-5, rel=1e-4), key
    expected = weights(alone)
    for name, tensor in weights(together).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("case", [*FP32, *BF16, *(f"{name}-masked" for name in MASKED)])
def test_what_is_held_has_its_bits_on_all_ranks_and_moments_stay(case: str, runs: Runs) -> None:
    ranks = runs.watched(case)
    for records in ranks:
        assert [record["step"] for record in records] == [1, 2, 4]
        for promise in ("held", "moments", "consistent"):
            assert all(record[promise] for record in records), records
    tried, taken = ([[record[key] for record in records] for records in ranks] for key in ("tried", "accepted"))
    assert tried[0] == tried[1]
    assert taken[0] == taken[1] == accepted(runs.folder / case)
    assert max(taken[0]) > 0
    assert case.endswith("masked") or tried != taken, "nothing was rolled back"


def test_a_candidate_that_breaks_one_rank_is_rolled_back_by_both(runs: Runs) -> None:
    """Its peers wait for it in every pass of ZeRO-3."""
    for records in runs.watched(extrapolating.BROKEN):
        assert [(record["tried"], record["accepted"], record["held"]) for record in records] == [(1, 0, True)] * 2
    assert max(accepted(runs.folder / BREAKS)[:2]) > 0, "what is whole would have been accepted"


@pytest.mark.parametrize("case", BF16)
def test_exported_weights_are_the_rounded_masters(case: str, runs: Runs) -> None:
    masters = runs.masters(case)
    for name, tensor in weights(runs.folder / case).items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, masters[name].bfloat16()), name
    assert any(not torch.equal(master, master.bfloat16().float()) for master in masters.values())


def test_a_rank_of_zero_keeps_its_share_alone(runs: Runs) -> None:
    whole = {records[0]["bytes"] for records in runs.watched("ddp")}
    assert len(whole) == 1
    for case in ("zero1", "zero2", "zero3", "zero2_bf16"):
        parts = [records[0]["bytes"] for records in runs.watched(case)]
        assert sum(parts) == whole.copy().pop(), case
        assert min(parts) > 0


@pytest.mark.parametrize("name", MASKED)
def test_no_bit_outside_a_mask_changes(name: str, runs: Runs) -> None:
    masks.check(runs.mask, runs.folder / f"{name}-masked" / "source", runs.folder / f"{name}-masked" / "model")


@pytest.mark.parametrize("case", SAME)
def test_resumed_equals_uninterrupted_bit_for_bit(case: str, runs: Runs) -> None:
    assert accepted(runs.folder / f"{case}to{case}") == accepted(runs.folder / case)[2:]
    again = runs.masters(f"{case}to{case}")
    for name, tensor in runs.masters(case).items():
        assert torch.equal(again[name], tensor), name


@pytest.mark.parametrize(("case", "strategy"), OTHER)
def test_another_strategy_goes_on_as_one_process_would(case: str, strategy: str, runs: Runs) -> None:
    alone, again = runs.alone(case), runs.folder / f"{case}to{strategy}"
    assert accepted(again) == accepted(alone)[2:]
    expected = weights(alone)
    for name, tensor in weights(again).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)
