"""The settings in which runs differ, and short names made of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from distill.config.flat import flat

SEED = "seed"
NOT_COMPARED = ("run_name", "resume", "logger")
"""What a run is called and where it is logged; beside the seed, all else makes another experiment."""
RECIPE_SECTIONS = ("rollout", "teacher", "objective")
MODELS = ("student", "teacher")
WITHOUT_LOGITS = ("objective.label_weight", "objective.logit_weight", "objective.chunk_size")
"""Keys of the objective that mean something where no divergence has a weight."""
SAMPLING = {"on_policy": "opd", "speculative": "speculative_kd"}
TAUGHT = {"self": "self_distillation", "multi": "multi_teacher", "cotrained": "online_kd"}
"""Recipes by the rollout that makes them, and before that by the teacher."""
SHOWN = 4
"""Settings in a name."""

Settings = dict[str, Any]


def compared(config: Mapping[str, Any]) -> Settings:
    """Dotted key → value of all that makes two runs different experiments, without keys of a divergence not used."""
    found = dict(flat({key: value for key, value in config.items() if key not in (SEED, *NOT_COMPARED)}))
    if found.get("objective.logit_weight") == 0:
        found = {
            key: value for key, value in found.items() if not key.startswith("objective.") or key in WITHOUT_LOGITS
        }
    return found


def identity(config: Mapping[str, Any]) -> str:
    """Equal for runs that differ in nothing but the seed, the name, and where they are logged."""
    return json.dumps(compared(config), sort_keys=True, default=str)


def recipe(config: Mapping[str, Any]) -> str | None:
    """The recipe that a rollout and a teacher make, whatever the run is called; None where these are not recorded."""
    if config.get("stages"):
        return "two_stage"
    if config.get("variance_reduction"):
        return "kd_variance"
    kinds = [_at(config, section, "kind") for section in ("rollout", "teacher")]
    if None in kinds:
        return None
    own = _at(config, "teacher", "path") == _at(config, "student", "path")
    if own and kinds[1] == "frozen" and _at(config, "teacher", "prompt") is not None:
        return TAUGHT["self"]
    if kinds[1] == "cotrained" and config.get("adm"):
        return "online_adm"
    if kinds[1] == "cotrained" and config["teacher"].get("lora"):
        return "online_lora"
    if kinds[1] in TAUGHT:
        return TAUGHT[kinds[1]]
    if kinds[0] in SAMPLING:
        return SAMPLING[kinds[0]]
    return "sft" if kinds[1] == "none" else "offline_kd"


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Key → its value in each configuration, as text, for the keys that do not have the same value in all of them."""
    flat = [compared(config) for config in configs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    columns = {key: [text(settings[key]) if key in settings else "–" for settings in flat] for key in keys}
    return {key: values for key, values in columns.items() if len(set(values)) > 1}


def names(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each configuration the settings that set it apart, as ``recipe opd · lr 1e-3``; empty without any."""
    differences = differing(configs)
    columns: list[tuple[str, list[str]]] = []
    recipes = [recipe(config) or "unknown" for config in configs]
    if len(set(recipes)) > 1:
        columns.append(("recipe", recipes))
        differences = {key: values for key, values in differences.items() if not _follows(key, values, recipes)}
    for section in MODELS:
        labels = [_model(config, section) for config in configs]
        told = tuple(f"{section}.{part}" for part in ("path", "config", "tokenizer", "revision"))
        if any(key.startswith(told) for key in differences) and len(set(labels)) > 1:
            columns.append((section, labels))
            differences = {key: values for key, values in differences.items() if not key.startswith(told)}
    every = {key for config in configs for key in compared(config)}
    columns += [(_label(key, every), [_short(value) for value in values]) for key, values in differences.items()]
    return [_join([f"{label} {values[index]}" for label, values in columns]) for index in range(len(configs))]


def text(value: Any) -> str:
    """As one types it on the command line: ``1e-3``, ``true``, ``null``."""
    if isinstance(value, float) and math.isfinite(value):
        exact = Decimal(repr(value)).normalize()
        return f"{exact:f}" if value == 0 or 1e-2 <= abs(value) < 1e5 else f"{exact:e}".replace("+", "")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _follows(key: str, values: Sequence[str], recipes: Sequence[str]) -> bool:
    """Whether the recipe says it all: a key of its sections with one value for each recipe."""
    return key.split(".")[0] in RECIPE_SECTIONS and len(set(zip(recipes, values, strict=True))) == len(set(recipes))


def _model(config: Mapping[str, Any], section: str) -> str:
    path, own = _at(config, section, "path"), _at(config, section, "config")
    members = _at(config, section, "members")
    if members:
        return " + ".join(sorted(members))
    if _at(config, section, "kind") == "self":
        return "self"
    if isinstance(path, str):
        return _short(path)
    if not isinstance(own, dict):
        return "none"
    sizes = [str(own[key]) for key in ("num_hidden_layers", "hidden_size") if key in own]
    return " ".join([str(own.get("model_type", "model")), "×".join(sizes)]).strip()


def _label(key: str, every: set[str]) -> str:
    """The last part of a dotted key, with its section where another key ends alike."""
    leaf = key.rpartition(".")[2]
    alike = sum(other.rpartition(".")[2] == leaf for other in every) > 1
    return f"{key.split('.')[0]} {leaf}" if alike else leaf


def _short(value: str) -> str:
    """The last part of a path, four digits of a number; anything long is cut."""
    if re.fullmatch(r"-?[\d.]+(e-?\d+)?", value) and len(value) > 8:
        return text(float(f"{float(value):.4g}"))
    value = Path(value).name or value if "/" in value and "\n" not in value and " " not in value else value
    return value if len(value) <= 24 else f"{value[:23]}…"


def _join(items: Sequence[str]) -> str:
    more = [f"+ {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return " · ".join([*items[:SHOWN], *more])


def _at(config: Mapping[str, Any], section: str, key: str) -> Any:
    values = config.get(section)
    return values.get(key) if isinstance(values, dict) else None
