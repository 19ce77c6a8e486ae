from __future__ import annotations

import numpy as np

from distill.rollouts.seeds import row_seed, step_uniform, uniforms


def test_uniforms_are_the_published_splitmix64_stream():
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    seeds = np.array([1234567], dtype=np.uint64)
    assert [uniforms(seeds, position)[0] for position in range(5)] == [(bits >> 11) * 2.0**-53 for bits in known]


def test_uniforms_stay_below_one_and_are_even():
    draws = np.concatenate([uniforms(np.arange(500, dtype=np.uint64), position) for position in range(40)])
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    chi_squared = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_squared < 43.8  # 0.999 quantile at 19 degrees of freedom
    assert len(set(draws)) == len(draws)


def test_a_row_draws_the_same_in_any_company():
    seeds = np.array([5, 2**63 - 1, 0], dtype=np.uint64)
    assert uniforms(seeds, 7)[1] == uniforms(seeds[1:2], 7)[0]


def test_row_seed_differs_for_each_argument_and_is_stable_across_machines():
    drawn = {row_seed(*key) for key in np.ndindex(3, 3, 3, 3)}
    assert len(drawn) == 81
    assert all(0 <= seed < 2**63 for seed in drawn)
    assert row_seed(0, 1, 2, 3) == 6387124776958605964


def test_step_uniform_is_even():
    draws = [step_uniform(3, step) for step in range(2000)]
    assert 0 <= min(draws) < 0.01
    assert 0.99 < max(draws) < 1
    assert abs(float(np.mean(draws)) - 0.5) < 0.02
