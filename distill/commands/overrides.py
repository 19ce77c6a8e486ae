"""The ``key=value`` and ``group=option`` words of a command line, checked one by one before anything is composed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from distill.config import suggest
from distill.config.redact import redact
from distill.errors import UserError

PLUGINS = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "submitit_slurm": "hydra_plugins.hydra_submitit_launcher",
}
"""Launchers that come from packages of their own, and these."""
HYDRAS = ("hydra/launcher", "hydra/sweeper")
"""The groups of Hydra's own whose options are checked."""


def rewrite(override: str, groups: Sequence[str]) -> str:
    """``key=value`` as ``++key=value``, so that Hydra lets unknown keys through and the schema can name all of them.

    Groups, Hydra's own keys and deletions (``~key``) stay as they are.
    """
    key, equals, value = override.partition("=")
    name = key.lstrip("+")
    special = name in groups or name.startswith(("~", "hydra.")) or "/" in name or "@" in name
    return override if special or not equals else f"++{name}={value}"


def completed(words: Sequence[str]) -> list[str]:
    """A student of one's own means ``student=path``, unless a student or an experiment is chosen.

    Otherwise it would be trained with what suits the embedded student, such as a learning rate of 2e-3.
    """
    keys = {word.lstrip("+").partition("=")[0] for word in words}
    own = any(key == "student.path" or key.startswith("student.config") for key in keys)
    return [*words, "student=path"] if own and keys.isdisjoint({"student", "experiment"}) else list(words)


def groups(loader: ConfigLoader) -> list[str]:
    """Names of the groups, Hydra's own excepted."""
    return [name for name in _found(loader, "", ObjectType.GROUP) if name != "hydra"]


def options(loader: ConfigLoader, group: str) -> list[str]:
    """Names of the options of a group."""
    return _found(loader, group, ObjectType.CONFIG)


def _found(loader: ConfigLoader, group: str, kind: ObjectType) -> list[str]:
    assert isinstance(loader, ConfigLoaderImpl)
    # The loader would copy every schema before it answers.
    return loader.repository.get_group_options(group, kind)


def parse(
    overrides: Sequence[str], loader: ConfigLoader, known: Sequence[str], multirun: bool
) -> tuple[list[Override], list[UserError]]:
    """Splits overrides into those that can be composed and what is wrong with the others; ``known`` keys are dotted."""
    parser = OverridesParser.create(config_loader=loader)
    names = groups(loader)
    # Options in a user's own search path are known to Hydra only once it composes.
    elsewhere = any("hydra.searchpath" in text for text in overrides)
    good, problems = list[Override](), list[UserError]()
    for text in overrides:
        key, _, value = text.partition("=")
        try:
            [override] = parser.parse_overrides([rewrite(text, names)])
        except OverrideParseException:
            allowed = "KEY=VALUE in Hydra's grammar (quote text with special characters: 'KEY=\"VALUE\"')"
            problems.append(UserError(key, redact(value, key), allowed))
            continue
        found = list(_misused(override, names, known, multirun))
        chosen = override.key_or_group in (*names, *HYDRAS)
        if not found and chosen and not override.is_delete() and not elsewhere:
            found = list(_no_option(override, options(loader, override.key_or_group)))
        problems += found
        if not found:
            good.append(override)
    return good, problems


def jobs(overrides: Sequence[Override], multirun: bool) -> list[list[str]]:
    """The overrides of every job: of the only one, or of a sweep as far as they are known beforehand."""
    if not multirun:
        return [[override.input_line or "" for override in overrides]]
    if any(override.is_sweep_override() and not override.is_discrete_sweep() for override in overrides):
        return []
    return BasicSweeper.split_arguments(list(overrides), None)[0]


def _misused(override: Override, names: Sequence[str], known: Sequence[str], multirun: bool) -> Iterator[UserError]:
    key = override.key_or_group
    if key == "hydra/launcher" and (plugin := PLUGINS.get(str(override.value()))) and find_spec(plugin) is None:
        yield UserError(key, override.value(), "'basic' without a plugin's package (pip install 'distill[sweep]')")
    if override.is_delete():
        if key in known and key not in names:
            yield UserError(key, "deleted", f"null to be off ({key}=null): a deleted key would be back at its default")
    elif override.is_sweep_override() and not multirun:
        value = (override.input_line or "").partition("=")[2]
        yield UserError(key, redact(value, key), f"one value (a list is {key}=[…], a sweep needs -m)")


def _no_option(override: Override, options: Sequence[str]) -> Iterator[UserError]:
    chosen = list(override.sweep_iterator()) if override.is_discrete_sweep() else [override.value()]
    # An option may be several at once, as in recipe=[sft,subnetwork].
    for option in (each for one in chosen for each in (one if isinstance(one, list) else [one])):
        if option is not None and option not in options:
            allowed = f"one of {', '.join(options)}{suggest.close(option, options)}"
            yield UserError(override.key_or_group, redact(option), allowed)
