"""Alignment of targets and states, and masks that come from lengths."""

from __future__ import annotations

import pytest
import torch

from distill.types import Batch, Briefing, Row, collate

PAD = 2


def row(ids: list[int], prompt: int, sample_id: int = 0, sampled: bool = False) -> Row:
    mask = torch.arange(len(ids)) >= prompt
    logprobs = -0.1 * torch.arange(len(ids)) * mask if sampled else None
    return Row(sample_id, torch.tensor(ids), mask, logprobs)


def ragged(sampled: bool = False) -> Batch:
    # The second row ends with the token that padding is filled with, and its prompt is longer than all of the first.
    rows = [row([5, 6, 7], 1, 3, sampled), row([5, 6, 8, 9, 4, PAD], 4, 8, sampled)]
    return collate(rows, PAD, window_positions=10, on_policy=sampled)


def test_a_target_is_predicted_from_the_token_before_it() -> None:
    batch = ragged()
    states = (10 * torch.arange(2)[:, None] + torch.arange(6))[..., None].float()
    assert batch.targets.tolist() == [6, 7, 4, PAD]
    assert batch.select(states).squeeze(-1).tolist() == [0.0, 1.0, 13.0, 14.0]


def test_masks_come_from_lengths_not_from_the_padding_token() -> None:
    batch = ragged()
    assert batch.input_ids[0].tolist() == [5, 6, 7, PAD, PAD, PAD]
    assert batch.attention_mask.tolist() == [[True] * 3 + [False] * 3, [True] * 6]
    assert batch.target_mask[1].tolist() == [False] * 4 + [True] * 2


def test_no_prompt_token_is_a_target_however_long_the_prompts() -> None:
    assert ragged().target_mask[:, :4].tolist() == [[False, True, True, False], [False] * 4]


def test_the_first_token_has_nothing_to_be_predicted_from() -> None:
    batch = collate([row([5, 6], 0)], PAD, window_positions=1, on_policy=False)
    assert batch.targets.tolist() == [6]


@pytest.mark.parametrize("sampled", [True, False])
def test_what_the_sampler_said_stays_beside_its_token(sampled: bool) -> None:
    batch = ragged(sampled)
    assert batch.sample_ids.tolist() == [3, 8]
    assert batch.on_policy == sampled
    if batch.sampler_logprobs is None:
        assert not sampled
        return
    assert batch.sampler_logprobs[batch.target_mask].tolist() == pytest.approx([-0.1, -0.2, -0.4, -0.5])
    assert not batch.sampler_logprobs[~batch.target_mask].any()


def test_moving_keeps_what_is_no_tensor() -> None:
    moved = ragged(True).to("meta")
    assert moved.window_positions == 10
    assert {value.device.type for value in vars(moved).values() if isinstance(value, torch.Tensor)} == {"meta"}


def test_a_teacher_reads_another_beginning_and_the_same_targets() -> None:
    """Rows of other lengths, one of which has a turn between two targets, and one without a briefing."""
    first = Row(0, torch.tensor([5, 6, 7, 8]), torch.tensor([0, 0, 1, 1]).bool(), briefing=Briefing(None, (9, 9, 9), 1))
    turns = torch.tensor([0, 0, 1, 0, 1]).bool()
    second = Row(1, torch.tensor([4, 5, 6, 7, PAD]), turns, torch.zeros(5), briefing=Briefing("one", (3,), 2))
    third = Row(2, torch.tensor([4, 6]), torch.tensor([0, 1]).bool())
    batch = collate([first, second, third], PAD, window_positions=5, on_policy=True)
    seen = batch.for_teacher
    assert [ids[mask].tolist() for ids, mask in zip(seen.input_ids, seen.attention_mask, strict=True)] == [
        [9, 9, 9, 6, 7, 8],
        [3, 6, 7, PAD],
        [4, 6],
    ]
    assert seen.targets.tolist() == batch.targets.tolist() == [7, 8, 6, PAD, 6]
    assert seen.members == batch.members == (None, "one", None)
    assert seen.for_teacher is seen
    assert batch.to("meta").for_teacher.input_ids.device.type == "meta"


def test_a_teacher_that_is_told_nothing_reads_the_batch_itself() -> None:
    batch = ragged()
    assert batch.briefed is None
    assert batch.for_teacher is batch


def test_a_briefing_in_place_of_a_target_is_a_mistake() -> None:
    row = Row(0, torch.tensor([5, 6, 7]), torch.tensor([0, 1, 1]).bool(), briefing=Briefing(None, (9,), 2))
    with pytest.raises(AssertionError, match="miss a target"):
        collate([row], PAD, window_positions=2, on_policy=False)
