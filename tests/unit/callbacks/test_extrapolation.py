"""Candidates and their order, what is written back to weights, and that nothing else of a run changes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from distill.analysis.naming import place
from distill.callbacks.deadline import Deadline
from distill.callbacks.extrapolation import KEYS, Extrapolation, candidate, search
from distill.errors import UserError
from tests.unit.callbacks.test_sparsity import Module, llama

NAN = math.nan


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_candidate_is_the_start_and_an_odd_multiple_of_the_update(k: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(k)
    base = torch.randn(1000, generator=generator).to(dtype)
    now = (base + 0.01 * torch.randn(1000, generator=generator)).to(dtype)
    expected = base.double() + (1 + 2 * k) * (now.double() - base.double())
    found = candidate(base, now, k)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=1e-6 if dtype == torch.float32 else 2**-8, atol=1e-6)
    assert candidate(base, now, 0) is now


def test_what_has_not_moved_keeps_its_bits() -> None:
    base = torch.tensor([-0.0, NAN, 1.0, math.inf, 0.0])
    now = torch.tensor([-0.0, NAN, 2.0, math.inf, -0.0])
    found = candidate(base, now, 1)
    assert torch.equal(found.view(torch.int32)[[0, 1, 3]], base.view(torch.int32)[[0, 1, 3]])
    assert found[2] == 4
    # A master may have been a bf16 weight when training began.
    assert torch.equal(candidate(base.bfloat16(), now, 1)[2:3], torch.tensor([4.0]))


@pytest.mark.parametrize(
    ("scores", "accepted", "tried", "after"),
    [
        ([0.5, 0.6, 0.7, 0.8], 3, 3, 0.8),
        ([0.5, 0.6, 0.6], 1, 2, 0.6),
        ([0.5, 0.5], 0, 1, 0.5),
        ([0.5, 0.4], 0, 1, 0.5),
        ([0.5, 0.7, 0.6], 1, 2, 0.7),
        ([0.5, NAN], 0, 1, 0.5),
        ([-3.0, -2.0, -2.5], 1, 2, -2.0),
    ],
)
def test_the_first_candidate_that_is_not_better_ends_the_search(
    scores: list[float], accepted: int, tried: int, after: float
) -> None:
    asked: list[int] = []
    found = search(lambda k: asked.append(k) or scores[k], 3)  # type: ignore[func-returns-value]
    assert (found.accepted, found.tried, found.before, found.after) == (accepted, tried, scores[0], after)
    assert asked == list(range(tried + 1)), "nothing is tried after a failure"


SCRIPT = {1: [0, 1, 2, 3], 2: [0, 0], 4: [0, 1, 0.5]}
"""Scores of θ and of candidates at each step: all of three accepted, none, the first."""
Weights = dict[str, Tensor]


class Watched(Module):
    """Scores are scripted; what is seen at each is kept, with the optimizer's state."""

    def __init__(self) -> None:
        super().__init__(llama(), lr=1e-3)
        self.seen: dict[int, list[tuple[Weights, Any]]] = {}
        self.heard: list[int] = []
        self.history: dict[int, tuple[Weights, Any]] = {0: (self.now(), None)}

    def now(self) -> Weights:
        return {name: parameter.detach().clone() for name, parameter in self.student.named_parameters()}

    def state(self) -> tuple[Weights, Any]:
        return self.now(), copy.deepcopy(self.trainer.optimizers[0].state_dict())

    def score(self, on_progress: Callable[[int], None]) -> float:
        seen = self.seen.setdefault(self.global_step, [])
        seen.append(self.state())
        on_progress(7)
        return SCRIPT[self.global_step][len(seen) - 1]

    def on_train_batch_end(self, *_: object) -> None:
        # After the callbacks.
        self.history[self.global_step] = self.state()


@pytest.fixture(scope="module")
def run() -> Watched:
    module = Watched()
    deadline = Deadline(math.inf)
    callback = Extrapolation(module.score, 3, Path("unused"), on_progress=module.heard.append, deadline=deadline)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", max_steps=6, callbacks=[callback], enable_checkpointing=False, **quiet)
    data = torch.randint(0, 11, (64, 6), generator=torch.Generator().manual_seed(0))
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
    # Of step 4, where one more candidate could have been tried.
    assert deadline.spared == pytest.approx(module.records[4]["time/extrapolation"] / 3)
    return module


def equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return torch.equal(ours, theirs) if isinstance(ours, Tensor) else bool(ours == theirs)


@pytest.mark.parametrize(("step", "base", "accepted"), [(1, 0, 3), (2, 1, 0), (4, 2, 1)])
def test_candidates_are_written_and_the_best_stays(step: int, base: int, accepted: int, run: Watched) -> None:
    start, (left, *tried) = run.history[base][0], [weights for weights, _ in run.seen[step]]
    assert len(tried) == len(SCRIPT[step]) - 1
    for k, weights in enumerate(tried, 1):
        for name, value in weights.items():
            moves = place(name).group in ("attention", "mlp")
            expected = candidate(start[name], left[name], k) if moves else left[name]
            assert torch.equal(value, expected), name
            assert torch.equal(value, left[name]) != moves, name
    assert equal(run.history[step][0], [left, *tried][accepted]), "bit by bit, also where one was rolled back"


@pytest.mark.parametrize("step", SCRIPT)
def test_the_optimizer_does_not_notice(step: int, run: Watched) -> None:
    before = run.seen[step][0][1]
    assert before["state"][0]["step"] == step
    assert equal(run.history[step][1], before)


def test_records_what_it_documents_at_powers_of_two(run: Watched) -> None:
    assert list(run.records) == [1, 2, 4] == list(run.seen)
    assert all(set(record) == set(KEYS) for record in run.records.values())
    rows = [[record[key] for key in KEYS[:6]] for record in run.records.values()]
    assert rows == [[3, 3, 0, 3, 4, 28], [0, 1, 0, 0, 6, 42], [1, 2, 0, 1, 9, 63]]
    assert run.heard == [7] * 9
    seconds = [run.records[step]["time/extrapolation"] for step in run.records]
    assert run.records[4]["time/extrapolation_total"] == pytest.approx(sum(seconds))


def test_a_student_without_such_weights_is_refused() -> None:
    model = llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = place(name).group not in ("attention", "mlp")
    module = SimpleNamespace(lm=SimpleNamespace(model=model))
    trainer: Any = None
    with pytest.raises(UserError, match="no attention or MLP weight is trained") as caught:
        Extrapolation(lambda _: 0.0, 5, Path("unused")).setup(trainer, module, "fit")
    assert caught.value.key == "callbacks.extrapolation"
