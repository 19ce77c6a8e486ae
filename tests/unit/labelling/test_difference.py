"""Losses per row are those of a loop in float64, and the best rows are exactly so many."""

import math

import pytest
import torch

from distill import data, models
from distill.config.schema import Data, Model
from distill.errors import RunError
from distill.labelling.difference import Difference, best
from tests import tiny


def model(seed: int, **changes) -> models.CausalLM:
    spec = Model(config=tiny.llama(16) | changes, tokenizer=tiny.TOKENIZER).model_dump()
    return models.build(spec, seed=seed, key="teacher")


@pytest.fixture(scope="module")
def rows() -> data.base.Dataset:
    config = Data(digits=2, limit=21, prompt="{a}{operator}{b}=").model_dump()
    return data.build(config, model(0).tokenizer, seed=0, max_positions=None)[0]


def expected(lm: models.CausalLM, sample) -> float:
    model = lm.model.double()
    with torch.no_grad():
        logits = model(torch.tensor([sample.input_ids])).logits[0]
    lm.model.float()
    total = 0.0
    for place, (token, target) in enumerate(zip(sample.input_ids, sample.target_mask, strict=True)):
        if target:
            total -= float(torch.log_softmax(logits[place - 1], -1)[token])
    return total


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_scores_are_their_definition(batch_size: int, rows) -> None:
    teacher, reference, heard = model(1), model(2), list[float]()
    writer = Difference(teacher, reference, rows, 16, batch_size)
    assert writer.parts == 2
    found = [score for number in range(2) for score in writer.make(number, heard.append)]
    assert sum(heard) == len(rows)
    for sample, score in zip(rows, found, strict=True):
        losses = expected(teacher, sample), expected(reference, sample)
        assert (score["id"], score["tokens"]) == (sample.id, sum(sample.target_mask))
        assert (score["loss_teacher"], score["loss_reference"]) == pytest.approx(losses, rel=1e-5)
        assert score["score"] == pytest.approx((losses[1] - losses[0]) / sum(sample.target_mask), abs=1e-5)


def test_padding_rows_of_the_vocabulary_do_not_count(rows) -> None:
    padded = model(1, vocab_size=64)
    padded.model.get_output_embeddings().weight.data[19:] = 0
    [score] = Difference(padded, model(2), rows, 1, 1).make(0, lambda work: None)
    with torch.no_grad():
        logits = padded.model(torch.tensor([rows[0].input_ids])).logits[0, :, :19]
    losses = torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(rows[0].input_ids)[1:, None])[:, 0]
    mask = torch.tensor(rows[0].target_mask)[1:]
    assert score["loss_teacher"] == pytest.approx(-float(losses[mask].sum()), rel=1e-5)


def test_a_loss_that_is_not_finite_names_model_and_row(rows) -> None:
    broken = model(2)
    broken.model.get_output_embeddings().weight.data.fill_(math.nan)
    message = f"the loss of the reference is not finite on row {rows[3].id} of the data"
    with pytest.raises(RunError, match=message):
        Difference(model(1), broken, rows, 1, 1).make(3, lambda work: None)


@pytest.mark.parametrize(
    ("scores", "keep", "places"),
    [
        ([1.0, 3.0, 2.0, 4.0], 0.5, {1, 3}),
        ([1.0, 1.0, 1.0], 0.5, {0, 1}),
        ([float(-place) for place in range(100)], 0.07, set(range(7))),
        ([2.0, 1.0], 1.0, {0, 1}),
        ([2.0, 1.0], 0.001, {0}),
    ],
)
def test_the_best_are_exactly_so_many(scores: list[float], keep: float, places: set[int]) -> None:
    assert best(scores, keep) == places
