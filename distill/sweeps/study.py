"""A resumable Optuna study by ask and tell: which points are asked, and what is known of them after a crash.

What is asked next is a pure function of the sampler's seed and the trials that ended: a study that was killed and
resumed asks the same points as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from distill.errors import UserError

JOURNAL = "study.log"
LOST, SETTINGS, REASON = "lost", "settings", "reason"
STRIDE = 1_000_003
"""Between the seeds of two studies, so that they share none."""


class Study:
    """Optuna's study in a folder, with every point asked under a seed of its own."""

    def __init__(self, home: Path, config: Mapping[str, Any]) -> None:
        """Opens or continues the study of ``home``; a trial that was running when it died is asked again.

        Raises:
            UserError: the folder holds a study of another space, metric or direction.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = JournalStorage(JournalFileBackend(str(home / JOURNAL)))
        self._seed = int(config["sampler_seed"])
        self._space = {key: distribution(values) for key, values in config["space"].items()}
        self._study = optuna.create_study(
            study_name="distill", storage=storage, direction=config["direction"], load_if_exists=True
        )
        settings = {key: config[key] for key in ("space", "metric", "direction", "overrides", "sampler_seed")}
        known = self._study.user_attrs.get(SETTINGS)
        for key, value in settings.items():
            if known is not None and known[key] != value:
                raise UserError(key, value, f"{known[key]!r} as in the study of {home}")
        if known is None:
            self._study.set_user_attr(SETTINGS, settings)
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            self._again(trial)

    def ended(self) -> list[FrozenTrial]:
        """The trials that came to an end of their own, in the order they were asked."""
        lost = self._study.user_attrs.get(LOST, [])
        trials = self._study.get_trials(states=(TrialState.COMPLETE, TrialState.FAIL))
        return [trial for trial in trials if trial.number not in lost]

    def ask(self) -> optuna.Trial:
        """The next point: the one that was lost, else a new one."""
        self._study.sampler = optuna.samplers.TPESampler(seed=self._seed * STRIDE + len(self.ended()))
        return self._study.ask(self._space)

    def tell(self, trial: optuna.Trial, value: float | None, reason: str | None = None) -> None:
        """Ends a trial: with its value, or as failed for a reason if it has none."""
        if value is not None and math.isfinite(value):
            self._study.tell(trial, value)
            return
        trial.set_user_attr(REASON, reason or f"the metric is {value}")
        self._study.tell(trial, state=TrialState.FAIL)

    @property
    def best(self) -> FrozenTrial | None:
        """The best trial; None before one has a value."""
        return self._study.best_trial if any(trial.value is not None for trial in self.ended()) else None

    def _again(self, trial: FrozenTrial) -> None:
        """In an order that may be cut short anywhere, and then be begun anew."""
        lost = self._study.user_attrs.get(LOST, [])
        self._study.set_user_attr(LOST, sorted({*lost, trial.number}))
        if not self._study.get_trials(states=(TrialState.WAITING,)):
            self._study.enqueue_trial(trial.params)
        self._study.tell(trial.number, state=TrialState.FAIL)


def distribution(values: list[Any] | Mapping[str, Any]) -> BaseDistribution:
    """Optuna's distribution of a list of values, or of a range ``{low, high, log, step}``."""
    if not isinstance(values, Mapping):
        return CategoricalDistribution(values)
    low, high, log, step = (values[key] for key in ("low", "high", "log", "step"))
    whole = isinstance(low, int) and isinstance(high, int) and (step is None or isinstance(step, int))
    if whole:
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(low, high, log=log, step=step)


def corners(values: list[Any] | Mapping[str, Any]) -> Iterator[Any]:
    """The values that show whether a key can take what the space offers: all of a list, both ends of a range."""
    yield from (values["low"], values["high"]) if isinstance(values, Mapping) else values
