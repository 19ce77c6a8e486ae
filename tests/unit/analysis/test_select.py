"""Selecting exactly so many values: against a stable sort, with ties, signs, zeros and across tensors."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distill.analysis.select import largest, largest_of_all, smallest, smallest_of_all

VALUES = st.lists(st.sampled_from([-3.0, -1e-40, -0.0, 0.0, 1e-40, 0.5, 0.5000001, 7.0, float("inf")]), max_size=40)


def by_sorting(values: Tensor, count: int, descending: bool) -> Tensor:
    order = torch.sort(values.double().reshape(-1), stable=True, descending=descending).indices[:count]
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[order] = True
    return mask.reshape(values.shape)


@given(VALUES, st.data())
def test_equals_a_stable_sort(values: list[float], data: st.DataObject) -> None:
    tensor = torch.tensor(values)
    count = data.draw(st.integers(0, len(values)))
    assert torch.equal(largest(tensor, count), by_sorting(tensor, count, descending=True))
    assert torch.equal(smallest(tensor, count), by_sorting(tensor, count, descending=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_keeps_the_shape_and_takes_ties_in_order(dtype: torch.dtype) -> None:
    values = (torch.randn(7, 3, 2, 5, generator=torch.Generator().manual_seed(0)) * 4).round().to(dtype)
    for count in (0, 1, 100, 209, 210):
        assert torch.equal(largest(values, count), by_sorting(values, count, descending=True))
    assert largest(torch.tensor(3.0, dtype=dtype), 1).shape == ()
    assert smallest(torch.empty(0, 3, dtype=dtype), 0).shape == (0, 3)


def test_more_than_one_piece_and_a_view_that_is_not_contiguous() -> None:
    values = torch.randn(701, 507, generator=torch.Generator().manual_seed(1)).t()
    assert torch.equal(smallest(values, 123456), by_sorting(values, 123456, descending=False))


@pytest.mark.parametrize(
    ("select_all", "select"), [(largest_of_all, largest), (smallest_of_all, smallest)], ids=["largest", "smallest"]
)
def test_many_tensors_are_selected_from_as_one(
    select_all: Callable[[Callable[[], Iterator[Tensor]], int], Iterator[Tensor]],
    select: Callable[[Tensor, int], Tensor],
) -> None:
    generator = torch.Generator().manual_seed(2)
    parts = [torch.randint(-9, 9, shape, generator=generator).float() for shape in ((30, 5), (), (0, 4), (200,), (3,))]
    joined = torch.cat([part.reshape(-1) for part in parts])
    for count in (0, 1, 57, 353, 354):
        found = [*select_all(lambda: iter(parts), count)]
        assert [mask.shape for mask in found] == [part.shape for part in parts]
        assert torch.equal(torch.cat([mask.reshape(-1) for mask in found]), select(joined, count))


def test_the_number_of_threads_changes_nothing() -> None:
    values = torch.randn(600_000, generator=torch.Generator().manual_seed(3)).bfloat16()
    threads = torch.get_num_threads()
    expected = largest(values, 90_000)
    try:
        torch.set_num_threads(3)
        assert torch.equal(largest(values, 90_000), expected)
    finally:
        torch.set_num_threads(threads)


def test_what_cannot_be_selected_is_refused() -> None:
    with pytest.raises(ValueError, match="3 values to select, but there are 2"):
        largest(torch.zeros(2), 3)
    with pytest.raises(ValueError, match="NaN has no place"):
        smallest(torch.tensor([1.0, float("nan")]), 1)
