from __future__ import annotations

import pytest

from distill.data.sampler import _of_size, indices


def test_every_epoch_is_a_permutation_and_differs_from_the_next():
    epochs = [indices(100, 0, 100 * epoch, 100) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != list(range(100))


def test_windows_concatenate_to_one_long_call():
    whole = indices(7, 3, 0, 50)
    windows = [index for start in range(0, 50, 5) for index in indices(7, 3, start, 5)]
    assert windows == whole


def test_a_pure_function_of_its_arguments():
    first = indices(50, 1, 120, 30)
    indices(50, 2, 0, 500)
    _of_size.cache_clear()
    assert indices(50, 1, 120, 30) == first


def test_the_split_over_ranks_does_not_matter():
    start, batch = 40, 12
    whole = indices(30, 5, start, batch)
    for ranks in (1, 2, 3, 4):
        share = batch // ranks
        parts = [indices(30, 5, start + rank * share, share) for rank in range(ranks)]
        assert [index for part in parts for index in part] == whole


def test_the_order_never_changes():
    # A checkpoint counts samples only: another order would repeat and skip data after a resume.
    assert indices(10, 0, 8, 6) == [6, 7, 5, 3, 7, 8]


def test_seeds_give_different_orders():
    assert len({tuple(indices(20, seed, 0, 20)) for seed in range(20)}) == 20


def test_every_position_is_equally_likely():
    firsts = [indices(4, seed, 0, 1)[0] for seed in range(2000)]
    assert all(abs(firsts.count(value) - 500) < 100 for value in range(4))


def test_a_callers_change_leaves_the_cache_alone():
    indices(10, 0, 0, 10).sort()
    assert indices(10, 0, 0, 10) != sorted(range(10))


@pytest.mark.parametrize("arguments", [(0, 0, 0, 1), (5, -1, 0, 1), (5, 0, -1, 1), (5, 0, 0, -1)])
def test_refuses_impossible_arguments(arguments):
    with pytest.raises(ValueError, match="size must be positive"):
        indices(*arguments)


def test_one_sample_repeats_for_ever():
    assert indices(1, 0, 5, 3) == [0, 0, 0]
