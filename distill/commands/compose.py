"""Hydra's part of every command: YAML groups and overrides become one validated dictionary of plain values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import hydra
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel

from distill.commands import overrides as words
from distill.config import (
    checks,
    rundir,
    schema,
    schema_analyze,
    schema_cache,
    schema_dashboard,
    schema_export,
    schema_label,
    schema_mask,
    schema_plan,
    schema_select,
    schema_tune,
    suggest,
    targets,
)
from distill.config.problem import Problem
from distill.config.redact import redact
from distill.config.validate import ConfigError, collect
from distill.errors import UserError

Check = Callable[[Any], Iterator[Problem]]

SCHEMAS: dict[str, tuple[type[BaseModel], Check]] = {
    "train": (schema.TrainConfig, checks.train),
    "export": (schema_export.ExportConfig, schema_export.check),
    "eval": (schema.EvalConfig, checks.evaluate),
    "cache": (schema_cache.CacheConfig, schema_cache.check),
    "label": (schema_label.LabelConfig, schema_label.check),
    "select": (schema_select.SelectConfig, schema_select.check),
    "plan": (schema_plan.PlanConfig, schema_plan.check),
    "report": (schema.ReportConfig, checks.output),
    "analyze": (schema_analyze.AnalyzeConfig, schema_analyze.check),
    "dashboard": (schema_dashboard.DashboardConfig, checks.output),
    "mask": (schema_mask.MaskConfig, schema_mask.check),
    "tune": (schema_tune.TuneConfig, schema_tune.check),
}
"""The commands that take a configuration: its schema and its checks."""

VERSION_BASE = "1.3"
MISSING = "???"


@dataclass(frozen=True)
class Composed:
    """A validated configuration, and which option each group ended with."""

    config: dict[str, Any]
    choices: dict[str, str | None]


def conf_dir() -> Path:
    """The YAML files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def register() -> None:
    """Makes the schemas' defaults and the resolvers of run directories known to Hydra."""
    _store_schemas()
    for resolver in (rundir.run_dir, rundir.sweep_dir, rundir.job_dir):
        OmegaConf.register_new_resolver(f"distill.{resolver.__name__}", resolver, replace=True, use_cache=True)


@cache
def _store_schemas() -> None:
    for name, (model, _) in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=defaults(model))


def defaults(model: type[BaseModel]) -> dict[str, Any]:
    """Every key of a schema with its default, or with Hydra's mark of a missing value where it has none."""
    required = {name: MISSING for name, field in model.model_fields.items() if field.is_required()}
    return required | model.model_construct().model_dump(mode="json", by_alias=True)


@contextmanager
def session(config_dir: str | None = None) -> Iterator[ConfigLoader]:
    """Opens Hydra on the YAML groups; ``config_dir`` is a user's folder with more of them."""
    register()
    version.setbase(VERSION_BASE)
    search_path = create_config_search_path(str(conf_dir()))
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise UserError("--config-dir", config_dir, "an existing folder")
        search_path.prepend("command-line", f"file://{Path(config_dir).resolve()}")
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2("distill", search_path)
    try:
        yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().clear()


def check(
    command: str,
    overrides: Sequence[str],
    *,
    multirun: bool = False,
    config_dir: str | None = None,
    own_check: Check | None = None,
) -> list[Composed]:
    """Composes and validates every job of a command line, before any of them starts.

    Raises:
        ConfigError: naming all that is wrong with any of them.
    """
    composed = list[Composed]()
    with session(config_dir) as loader:
        known = [key for key, _ in suggest.keys(SCHEMAS[command][0])]
        good, problems = words.parse(overrides, loader, known, multirun)
        for job in words.jobs(good, multirun):
            try:
                config = hydra.compose(command, job, return_hydra_config=True)
                composed.append(validated(command, config, config.hydra, own_check, multirun))
                if own_check is None:
                    problems += _no_folder(config.hydra, multirun)
            except ConfigError as error:
                problems += error.problems
            except (HydraException, OmegaConfBaseException) as error:
                problems.append(_hydras_own(error, command, job) or explained(error, job))
    if problems:
        raise ConfigError(problems)
    return composed


def sweep_words(command: str, overrides: Sequence[str], config_dir: str | None) -> list[str]:
    """The command line of a sweep with the parameters that its ``sweep=OPTION`` stands for; given keys outrank them."""
    chosen = [word for word in overrides if word.lstrip("+").startswith(("sweep=", "hydra.searchpath="))]
    with session(config_dir):
        try:
            params = hydra.compose(command, chosen, return_hydra_config=True).hydra.sweeper.get("params") or {}
        except (HydraException, OmegaConfBaseException):
            # Said by :func:`check`, with all that is wrong besides.
            return [*overrides]
    given = {word.lstrip("+").partition("=")[0] for word in overrides}
    return [*(f"{key}={value}" for key, value in params.items() if key not in given), *overrides]


def sweep_jobs(
    command: str, overrides: Sequence[str], config_dir: str | None
) -> tuple[DictConfig, list[list[str]], list[str]]:
    """A checked sweep: its first job's configuration, all jobs' overrides, and the words to hand over to Hydra."""
    with session(config_dir) as loader:
        good, _ = words.parse(overrides, loader, [], multirun=True)
        jobs = words.jobs(good, multirun=True)
        names = words.groups(loader)
        config = hydra.compose(command, jobs[0] if jobs else [], return_hydra_config=True)
        # Resolved here, once: what a process makes up for itself differs from job to job.
        config.hydra.sweep.dir = str(Path(config.hydra.sweep.dir).absolute())
        return config, jobs, [words.rewrite(word, names) for word in overrides]


def validated(
    command: str, config: DictConfig, node: DictConfig, own_check: Check | None = None, multirun: bool = False
) -> Composed:
    """One composed configuration as validated plain values; ``node`` is Hydra's own part of it.

    Raises:
        ConfigError: naming all that is wrong with it.
    """
    task = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    resolved = OmegaConf.to_container(task, resolve=True)
    assert isinstance(resolved, dict)
    values = {str(key): value for key, value in resolved.items() if value != MISSING}
    choices = {key: option for key, option in node.runtime.choices.items() if not key.startswith("hydra/")}
    model, checks_of_command = SCHEMAS[command]
    if multirun and own_check is None and command == "train":
        own_check = partial(checks.job, ranks=node.launcher.get("nodes", 1) * node.launcher.get("tasks_per_node", 1))
    found, problems = collect(values, model, own_check or checks_of_command)
    problems += targets.refused(OmegaConf.to_container(node, resolve=False), targets.HYDRA_ALLOWED, "hydra")
    problems += _contradiction(choices, values)
    if choices.get("sweep") and not multirun:
        problems.append(UserError("sweep", choices["sweep"], f"left out without -m (distill {command} -m sweep=…)"))
    if found is None or problems:
        raise ConfigError(problems)
    return Composed(found, choices)


def explained(error: BaseException, job: Sequence[str]) -> UserError:
    """What a person can do about an error of Hydra or OmegaConf; a UserError that a resolver raised is itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    key = getattr(error, "full_key", None) or "overrides"
    typed = " ".join(word.lstrip("+") for word in job)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(key, typed, f"resolvable ({reason})")


def _hydras_own(error: Exception, command: str, job: Sequence[str]) -> UserError | None:
    """What is wrong with a key of Hydra's launcher or sweeper, if that is what the error is about."""
    found = re.search(r"Could not override '(hydra\.(launcher|sweeper))\.([^']+)'", str(error))
    if found is None:
        return None
    section, part, name = found.groups()
    word = next((word for word in job if word.partition("=")[0] == f"{section}.{name}"), "")
    others = [word for word in job if not word.lstrip("+~").startswith(f"{section}.")]
    known = [str(key) for key in hydra.compose(command, others, return_hydra_config=True).hydra[part]]
    keys = [key for key in known if not key.startswith("_")]
    allowed = (
        f"left out: hydra/{part} has no such key{suggest.close(name, keys)}; its keys: {', '.join(keys) or 'none'}"
    )
    return UserError(f"{section}.{name}", redact(word.partition("=")[2], name), allowed)


def _no_folder(node: DictConfig, multirun: bool) -> Iterator[UserError]:
    """Hydra makes the run directory itself, before anything of ours could say why that fails."""
    section = "sweep" if multirun else "run"
    folder = str(node[section].dir)
    if reason := rundir.unusable(Path(folder)):
        yield UserError(f"hydra.{section}.dir", folder, f"a folder to write into ({reason})")


def _contradiction(choices: dict[str, str | None], values: dict[str, Any]) -> Iterator[UserError]:
    """A recipe's weights outrank its objective's: cross-entropy alone and a part for the teacher exclude each other."""
    if choices.get("objective") == "cross_entropy" and values["objective"].get("logit_weight"):
        weight = values["objective"]["logit_weight"]
        yield UserError("objective.logit_weight", weight, "0 with objective=cross_entropy (choose recipe=sft)")
