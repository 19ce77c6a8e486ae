"""One optimizer step at a time: which prompts, when the rollout is called, what is counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from distill import distributed
from distill.data.sampler import indices
from distill.data.window import WindowLoader
from distill.types import Batch, Row, Sample, collate


class Numbers:
    """Sample ``i`` has the prompt ``[i]``."""

    name, has_verifier = "numbers", False

    def __init__(self, size: int = 10) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        return Sample(index, (index,))

    def score(self, sample: Sample, completion: str) -> float:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        raise NotImplementedError


@dataclass
class Recorder:
    """Completions of ``1 + sample % 3 + copy`` tokens; remembers its calls."""

    calls: list[tuple[int, list[tuple[int, int]]]] = field(default_factory=list)

    def __call__(self, samples: list[Sample], copies: list[int], step: int) -> list[Row]:
        drawn = [(sample.id, copy) for sample, copy in zip(samples, copies, strict=True)]
        self.calls.append((step, drawn))
        return [self.row(*pair) for pair in drawn]

    def row(self, sample_id: int, copy: int) -> Row:
        length = 1 + sample_id % 3 + copy
        mask = torch.tensor([False] + [True] * length)
        return Row(sample_id, torch.full((1 + length,), sample_id), mask, torch.zeros(1 + length))


def loader(rollout: Recorder, dataset: Numbers | None = None, **options: Any) -> WindowLoader:
    keys: dict[str, Any] = {"batch_size": 6, "samples_per_prompt": 1, "micro_batch_size": None, "max_steps": 4}
    keys |= {
        "seed": 0,
        "collate": lambda rows, positions, sampled: collate(rows, 0, positions, sampled),
        "next_step": lambda: 0,
    }
    return WindowLoader(dataset or Numbers(), rollout, **keys | options)


def tokens(batches: list[Batch]) -> int:
    return sum(int(batch.target_mask.sum()) for batch in batches)


def test_the_count_is_that_of_the_generated_tokens_over_all_micro_batches() -> None:
    batches = list(loader(Recorder(), micro_batch_size=4, max_steps=3))
    assert [len(batch.input_ids) for batch in batches] == [4, 2] * 3
    for step in range(3):
        window = batches[2 * step : 2 * step + 2]
        assert {batch.window_positions for batch in window} == {tokens(window)}
    assert len({batch.window_positions for batch in batches}) > 1


def test_prompts_are_those_of_the_sample_stream() -> None:
    rollout = Recorder()
    list(loader(rollout))
    assert [sample for _, drawn in rollout.calls for sample, _ in drawn] == indices(10, 0, 0, 24)
    assert [step for step, _ in rollout.calls] == [0, 1, 2, 3]


def test_a_rollout_is_sampled_only_when_its_step_has_come() -> None:
    rollout = Recorder()
    stream = loader(rollout, micro_batch_size=3)
    assert len(stream) == 8, "an unsized loader would be asked for a batch ahead of the update"
    batches = iter(stream)
    for taken in range(1, 9):
        next(batches)
        assert len(rollout.calls) == (taken + 1) // 2


def test_copies_of_a_prompt_are_numbered() -> None:
    rollout = Recorder()
    list(loader(rollout, samples_per_prompt=3, max_steps=1))
    first, second = indices(10, 0, 0, 2)
    assert rollout.calls[0][1] == [(first, 0), (first, 1), (first, 2), (second, 0), (second, 1), (second, 2)]


def test_a_prompt_drawn_twice_in_one_step_gets_two_different_rollouts() -> None:
    rollout = Recorder()
    list(loader(rollout, Numbers(2), max_steps=3))
    for _, drawn in rollout.calls:
        assert len(set(drawn)) == len(drawn) == 6


def test_a_resumed_loader_goes_on_where_it_was() -> None:
    whole, first, second = Recorder(), Recorder(), Recorder()
    list(loader(whole))
    stopped = loader(first, max_steps=2)
    list(stopped)
    resumed = loader(second, next_step=lambda: 2)
    resumed.load_state_dict(stopped.state_dict())
    list(resumed)
    assert first.calls + second.calls == whole.calls


@pytest.mark.parametrize("copies", [1, 3])
def test_ranks_share_the_window_and_its_count(copies: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Recorder()
    expected = list(loader(alone, samples_per_prompt=copies, max_steps=1))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_sum", lambda count: torch.tensor(expected[0].window_positions))
    shares, batches = [], []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        recorder = Recorder()
        batches += list(loader(recorder, samples_per_prompt=copies, max_steps=1))
        shares += recorder.calls[0][1]
    assert shares == alone.calls[0][1]
    assert tokens(batches) == expected[0].window_positions
    assert {batch.window_positions for batch in batches} == {expected[0].window_positions}
