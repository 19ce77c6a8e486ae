"""A mixture: which part each entry of the stream is of, ids that tell parts apart, and who judges a completion."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from distill.config.schema import Data
from distill.data.build import build
from distill.data.mixture import Mixture, order
from distill.data.sampler import indices
from distill.errors import UserError
from distill.types import Sample
from tests.unit.data.conftest import build_byte_tokenizer


@dataclass(frozen=True)
class Letters:
    """Samples whose ids are ``first``, ``first + 3``, …; a completion is right if it is the letter and the id."""

    letter: str
    size: int
    first: int = 0
    has_verifier: bool = True
    name: str = "letters"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.first + 3 * index, (ord(self.letter), index))

    def score(self, sample: Sample, completion: str) -> float:
        return float(completion == f"{self.letter}{sample.id}")

    def describe(self) -> dict[str, Any]:
        return {"source": self.letter}


def mixture(*weights: int, sizes: tuple[int, ...] = (10, 4, 7)) -> Mixture:
    names = "abc"[: len(weights)]
    return Mixture(tuple(names), tuple(map(Letters, names, sizes)), weights)


def part(mixed: Mixture, index: int) -> int:
    return "abc".index(chr(mixed[index].prompt_ids[0]))


@pytest.mark.parametrize("weights", [(1, 1), (3, 2), (999, 1), (5, 3, 2), (1, 1, 1)])
def test_every_stretch_has_each_parts_share(weights: tuple[int, ...]) -> None:
    mixed, total = mixture(*weights), sum(weights)
    drawn = [part(mixed, index) for index in mixed.order(0, 0, 2 * total + 12)]
    assert Counter(drawn[:total]) == dict(enumerate(weights))
    for start in range(0, 2 * total, 7):
        for size in (1, 6, 12):
            found = Counter(drawn[start : start + size])
            for which, weight in enumerate(weights):
                assert abs(found[which] - size * weight / total) < len(weights)


def test_the_stream_is_the_same_however_it_is_cut() -> None:
    mixed = mixture(3, 2, 1)
    whole = mixed.order(5, 0, 60)
    for cuts in ((0, 1, 2, 60), (0, 13, 26, 39, 60), tuple(range(61))):
        assert [index for a, b in pairwise(cuts) for index in mixed.order(5, a, b - a)] == whole


def test_each_part_goes_through_all_of_its_samples_before_it_repeats_one() -> None:
    mixed = mixture(1, 1)
    drawn = mixed.order(0, 0, 40)
    of = [[index for index in drawn if part(mixed, index) == which] for which in range(2)]
    assert sorted(of[0][:10]) == list(range(10))
    assert [sorted(of[1][start : start + 4]) for start in (0, 4, 8)] == [list(range(10, 14))] * 3
    assert of[0] == indices(10, 0, 0, 20), "as if it were alone"


def test_parts_of_one_size_are_not_gone_through_in_one_order() -> None:
    mixed = mixture(1, 1, sizes=(30, 30))
    drawn = mixed.order(0, 0, 60)
    first, second = ([index % 30 for index in drawn if part(mixed, index) == which] for which in range(2))
    assert first != second


def test_a_dataset_alone_has_its_own_stream() -> None:
    assert order(Letters("a", 10), 3, 4, 20) == indices(10, 3, 4, 20)


def test_ids_tell_the_parts_apart_and_who_judges() -> None:
    mixed = mixture(1, 1, 1)
    samples = [mixed[index] for index in range(len(mixed))]
    assert len({sample.id for sample in samples}) == len(samples) == 21
    with pytest.raises(IndexError):
        mixed[21]
    for index, sample in enumerate(samples):
        letter, own = chr(sample.prompt_ids[0]), 3 * sample.prompt_ids[1]
        assert mixed.score(sample, f"{letter}{own}") == 1, index
        others = set("abc") - {letter}
        assert [mixed.score(sample, f"{other}{own}") for other in others] == [0, 0]


def test_a_mixture_of_mixtures_keeps_ids_and_judges() -> None:
    nested = Mixture(("x", "y"), (mixture(1, 1), Letters("c", 5)), (2, 1))
    samples = [nested[index] for index in range(len(nested))]
    assert len({sample.id for sample in samples}) == len(samples) == 19
    for sample in samples:
        assert nested.score(sample, f"{chr(sample.prompt_ids[0])}{3 * sample.prompt_ids[1]}") == 1


def test_accuracy_means_something_only_where_all_parts_have_a_verifier() -> None:
    assert mixture(1, 1).has_verifier
    assert not Mixture(("a", "b"), (Letters("a", 2), Letters("b", 2, has_verifier=False)), (1, 1)).has_verifier


PARTS = {"two": {"digits": 2, "limit": 50, "weight": 60}, "three": {"digits": 3, "weight": 20}}


def test_from_a_configuration() -> None:
    config = Data(source="mixture", parts=PARTS, eval_size=20).model_dump()
    train, held_out = build(config, build_byte_tokenizer(), seed=0, max_positions=None)
    assert isinstance(train, Mixture)
    assert train.weights == (3, 1), "in lowest terms"
    assert len(train.parts[0]) == 50
    assert train.describe()["parts"]["two"]["share"] == 0.75
    assert isinstance(held_out, Mixture)
    assert [len(part) for part in held_out.parts] == [15, 5]


def test_held_out_examples_may_come_from_elsewhere() -> None:
    config = Data(source="mixture", parts=PARTS).model_dump()
    judging = Data(digits=2, operator="-", eval_size=7).model_dump()
    _, held_out = build(config, build_byte_tokenizer(), seed=0, max_positions=None, judging=judging)
    assert held_out.describe()["operator"] == "-"
    assert len(held_out) == 7


def test_mistakes_are_named_by_the_part() -> None:
    config = Data(source="mixture", parts=PARTS | {"file": {"source": "text", "path": "/none"}}).model_dump()
    with pytest.raises(UserError, match=r"^`data\.parts\.file\.path` must be"):
        build(config, build_byte_tokenizer(), seed=0, max_positions=None)
    judging = Data(source="text", path="/none").model_dump()
    with pytest.raises(UserError, match=r"^`eval_data\.path` must be"):
        build(Data().model_dump(), build_byte_tokenizer(), seed=0, max_positions=None, judging=judging)
