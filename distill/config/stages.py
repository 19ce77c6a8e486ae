"""A run of several stages as ordinary configurations: one for each stage, or one for a mixture of their data."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from distill.config.flat import flat
from distill.config.schema import Source, TrainConfig

OWN = ("stages", "stages_order")
VALUES = ("options", "config", "custom")
"""Names of keys whose value is taken as it is: a dictionary that is no section."""

Config = dict[str, Any]
RUN = ""
"""In place of a stage's name, of a run that has none."""


def overridden(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Config:
    """``base`` with the keys of ``changes`` in place of its own; sections are gone into."""
    found = dict(base)
    for name, value in changes.items():
        inside = isinstance(value, Mapping) and isinstance(found.get(name), Mapping) and name not in VALUES
        found[name] = overridden(found[name], value) if inside else copy.deepcopy(value)
    return found


def raw(config: Mapping[str, Any]) -> dict[str, Config]:
    """Stage → configuration, in the order given, as far as it can be told before it is validated.

    Held-out examples are those of the last stage given, whatever the order, so that all stages, and all orders, are
    judged by the same ones.
    """
    base = {key: config[key] for key in TrainConfig.model_fields if key not in OWN and key in config}
    found = {name: overridden(base, changes) for name, changes in config["stages"].items()}
    *_, last = found.values()
    for one in found.values():
        if base.get("eval_data") is None:
            one["eval_data"] = None if one["data"] == last["data"] else copy.deepcopy(last["data"])
    for name, one in found.items():
        one["run_name"] = f"{base['run_name']}-{name}"
        logger = base["logger"]
        label = logger["name"] or base["run_name"]
        one["logger"] = logger | {"name": f"{label}-{name}", "group": logger["group"] or label}
    return found


def of(config: Mapping[str, Any]) -> dict[str, Config]:
    """Stage → configuration of the run that it is, of a validated configuration with ``stages``, in their order of
    running. The student of all of them is that of the first."""
    found = {name: TrainConfig(**one).model_dump(mode="json", by_alias=True) for name, one in raw(config).items()}
    return dict(reversed(found.items())) if config["stages_order"] == "reversed" else found


def runs(config: Config) -> dict[str, Config]:
    """The runs that a validated configuration stands for, by stage, in their order; a single one is :data:`RUN`."""
    if config["stages"] is None:
        return {RUN: config}
    if config["stages_order"] != "mixed":
        return of(config)
    return {RUN: TrainConfig(**mixed(config)).model_dump(mode="json", by_alias=True)}


def recorded(config: Config) -> list[Config]:
    """The configurations of the runs that one from a file stands for: its stages', or the one it is."""
    if not config.get("stages"):
        return [config]
    try:
        return list(of(config).values())
    except (ValueError, KeyError, TypeError, AttributeError):
        # Of another version, or written by hand: what it says itself is all there is.
        return [config]


def mixed(config: Mapping[str, Any]) -> Config:
    """One run on the data of all stages, which agree in everything but their data and number of steps.

    Every optimizer step draws from each in proportion to the samples its stage would have consumed, and there are as
    many steps as all stages have: our formulation.
    """
    stages = raw(config)
    *_, last = stages.values()
    weights = {name: one["data"]["batch_size"] * one["trainer"]["max_steps"] for name, one in stages.items()}
    parts = {
        name: {key: one["data"][key] for key in Source.model_fields} | {"weight": weights[name]}
        for name, one in stages.items()
    }
    sizes = {key: last["data"][key] for key in ("batch_size", "eval_size")}
    steps = sum(one["trainer"]["max_steps"] for one in stages.values())
    return last | {
        "run_name": config["run_name"],
        "logger": config["logger"],
        "data": {"source": "mixture", **sizes, "parts": parts},
        "eval_data": last["eval_data"] or last["data"],
        "trainer": last["trainer"] | {"max_steps": steps},
    }


def differences(stages: Iterable[Mapping[str, Any]]) -> list[str]:
    """Dotted keys in which stages that are to be mixed differ, though one run has but one value of each."""
    one_each = [dict(flat(_comparable(stage))) for stage in stages]
    keys = dict.fromkeys(key for values in one_each for key in values)
    return [key for key in keys if len({repr(values.get(key)) for values in one_each}) > 1]


def _comparable(stage: Mapping[str, Any]) -> Config:
    kept = {key: value for key, value in stage.items() if key not in ("run_name", "logger", "eval_data")}
    kept["data"] = {key: value for key, value in stage["data"].items() if key not in Source.model_fields}
    kept["trainer"] = {key: value for key, value in stage["trainer"].items() if key != "max_steps"}
    return kept
