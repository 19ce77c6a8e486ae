"""Parts of a training set: how many rows, that smaller ones lie in larger ones, and what they keep of the whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.config.schema import Data
from distill.data.base import Dataset
from distill.data.build import build
from distill.errors import UserError
from tests.unit.data.conftest import build_byte_tokenizer


def part(seed: int = 0, **options: object) -> tuple[Dataset, Dataset]:
    return build(Data(digits=2, **options).model_dump(), build_byte_tokenizer(), seed=seed, max_positions=None)  # type: ignore[arg-type]


def ids(dataset: Dataset) -> list[int]:
    return [dataset[index].id for index in range(len(dataset))]


def test_smaller_parts_lie_in_larger_ones_whatever_the_seed() -> None:
    whole, _ = part()
    parts = [set(ids(part(seed, limit=size)[0])) for seed, size in ((0, 10), (7, 50), (3, 400))]
    assert [len(found) for found in parts] == [10, 50, 400], "no row twice"
    assert parts[0] < parts[1] < parts[2] < set(ids(whole))
    assert ids(part(0, limit=50)[0]) == ids(part(7, limit=50)[0])


def test_a_part_is_no_stretch_of_the_whole() -> None:
    chosen = sorted(ids(part(limit=100)[0]))
    assert chosen[-1] - chosen[0] > len(part()[0]) / 2


@pytest.mark.parametrize(("fraction", "rows"), [(0.1, 909), (0.07, 637), (1e-9, 1), (0.99995, 9090), (1.0, 9090)])
def test_a_fraction_is_rounded_up(fraction: float, rows: int) -> None:
    assert len(part()[0]) == 9090
    assert len(part(fraction=fraction)[0]) == rows


def test_samples_keep_their_ids_and_judges_and_what_is_held_out_stays() -> None:
    whole, held_out = part()
    some, same = part(limit=20)
    for index in range(20):
        sample = some[index]
        assert sample == whole[sample.id]
        assert some.score(sample, str(sample.answer)) == 1
        assert some.score(sample, str(sample.answer + 1)) == 0
    assert (some.has_verifier, some.name) == (whole.has_verifier, whole.name)
    assert ids(same) == ids(held_out)
    assert some.describe() == whole.describe() | {"rows": 20, "part": some.describe()["part"]}
    assert "20 of 9090" in some.describe()["part"]
    with pytest.raises(IndexError):
        some[20]


def test_all_rows_are_the_dataset_itself() -> None:
    assert [part(**options)[0].describe() for options in ({"limit": 9090}, {"fraction": 1.0})] == [
        part()[0].describe()
    ] * 2


def test_more_rows_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"`data\.limit` must be at most 9090, the number of training rows, but is 9091"
    ):
        part(limit=9091)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 20)
    with pytest.raises(UserError, match="at most 18, the number of training rows"):
        part(source="text", path=str(tmp_path / "rows.jsonl"), limit=20)
