"""A share of the optimizer steps on the student's own rollouts, the rest on the dataset (GKD's λ, arXiv 2306.13649)."""

from __future__ import annotations

from collections.abc import Callable

from distill.rollouts import Rollout
from distill.rollouts.seeds import step_uniform
from distill.types import Row, Sample


def is_on_policy(seed: int, step: int, fraction: float) -> bool:
    """Whether an optimizer step samples from the student; the same on every rank, as only these numbers decide."""
    return step_uniform(seed, step) < fraction


class MixedRollout:
    """Calls ``sampled`` at a share of the steps and ``fixed`` at the others: all rows of a step are of one kind.

    ``fraction(step)`` is the probability of ``sampled``. ``on_policy`` tells which kind the latest call returned.
    """

    def __init__(self, fixed: Rollout, sampled: Rollout, seed: int, fraction: Callable[[int], float]) -> None:
        self.fixed, self.sampled, self.seed, self.fraction = fixed, sampled, seed, fraction
        self.on_policy = fraction(0) > 0 and sampled.on_policy

    def __call__(self, samples: list[Sample], copies: list[int], step: int) -> list[Row]:
        rollout = self.sampled if is_on_policy(self.seed, step, self.fraction(step)) else self.fixed
        self.on_policy = rollout.on_policy
        return rollout(samples, copies, step)
