"""``distill tune space={KEY: VALUES} metric=KEY trials=N [overrides of train]``: a search that survives being killed.

Each trial is ``distill train`` in a process and a run directory of its own, below that of the study.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from distill.commands import compose, overrides
from distill.config import suggest
from distill.config.redact import redact
from distill.config.schema_tune import TuneConfig
from distill.config.validate import ConfigError
from distill.errors import UserError
from distill.sweeps import job, record
from distill.sweeps.stop import SIGNALLED, stoppable

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from distill.sweeps.study import Study

FILE = "study.json"


def split(words: Sequence[str], config_dir: str | None) -> list[str]:
    """A command line of tune as words of its own: what belongs to train becomes the value of ``overrides``."""
    with compose.session(config_dir) as loader:
        names = {*overrides.groups(loader), *compose.SCHEMAS["train"][0].model_fields} - {"resume"}
    own, others = list[str](), list[str]()
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        is_train = key.partition(".")[0].partition("@")[0] in names or key == "hydra.searchpath"
        (others if is_train and key not in TuneConfig.model_fields else own).append(word)
    found = [f"overrides=[{','.join(map(job.in_quotes, others))}]"] if others else []
    return [*own, *found, *([job.quoted("config_dir", str(Path(config_dir).absolute()))] if config_dir else [])]


def check(config: dict[str, Any]) -> None:
    """Composes train with every value of a list and both ends of every range, the other keys at their first value.

    Raises:
        ConfigError: naming each value that train refuses, and keys that are searched and given at once.
        UserError: optuna is missing.
    """
    if find_spec("optuna") is None:
        raise UserError("COMMAND", "tune", "another one unless optuna is installed (pip install 'distill[sweep]')")
    from distill.sweeps.study import corners

    given = {word.lstrip("+").partition("=")[0] for word in config["overrides"]}
    problems: list[UserError] = [
        UserError(key, "given", "left out of the overrides: it is searched")
        for key in sorted(given & {*config["space"]})
    ]
    firsts = {key: next(corners(values)) for key, values in config["space"].items()}
    points = [firsts | {key: value} for key, values in config["space"].items() for value in corners(values)]
    for point in points:
        try:
            compose.check("train", [*config["overrides"], *as_words(point)], config_dir=config["config_dir"])
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def run(config: dict[str, Any], run_dir: Path) -> int:
    """Runs trials until the study has as many as asked for; returns 0, 1 if none has a value, or 128 + a signal.

    Raises:
        UserError: the directory holds another study, another process runs it, or a trial did not record the metric.
    """
    from distill.sweeps.study import JOURNAL, Study

    if (run_dir / JOURNAL).exists() and config["resume"] != "auto":
        raise UserError(
            "hydra.run.dir", str(run_dir), "a new folder (or pass resume=auto to go on with the study in it)"
        )
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError("hydra.run.dir", str(run_dir), "a study that no other process is running") from None
    with lock, stoppable(run_dir) as stopped:
        record.clear_stop(run_dir)
        study = Study(run_dir, config)
        while len(study.ended()) < config["trials"] and not stopped:
            _one(study, config, run_dir)
        _finish(study, config, run_dir)
    return SIGNALLED + stopped[-1] if stopped else int(study.best is None)


def as_words(params: dict[str, Any]) -> list[str]:
    """Values of keys as overrides in Hydra's grammar."""
    return [
        job.quoted(key, value) if isinstance(value, str) else f"{key}={json.dumps(value)}"
        for key, value in params.items()
    ]


def _one(study: Study, config: dict[str, Any], home: Path) -> None:
    """Asks for a point and trains with it; a trial that is interrupted stays open, for the next attempt to go on."""
    number, trial = len(study.ended()), study.ask()
    words = as_words(trial.params)
    print(f"trial {number}: {' '.join(words)}", flush=True)
    folder = _folder(home, number)
    flags = ["--config-dir", config["config_dir"]] if config["config_dir"] else []
    grouped = any(word.lstrip("+").startswith("logger.group=") for word in config["overrides"])
    words = [*config["overrides"], *words, *([] if grouped else [job.quoted("logger.group", home.name)])]
    ended = job.run(job.Job(number, "train", words, folder, home, flags, start=job.PROGRAM))
    if ended.status in ("pending", "interrupted"):
        return
    value = record.last(folder, config["metric"]) if ended.status == "ok" else None
    if ended.status == "ok" and value is None:
        # No trial would have it: the others would be trained for nothing.
        keys = record.measured(folder)
        allowed = f"a key of metrics.jsonl{suggest.close(config['metric'], keys)}, which has {', '.join(sorted(keys))}"
        raise UserError("metric", config["metric"], allowed)
    reason = ended.error or f"{config['metric']} is {value} in {folder / 'metrics.jsonl'}"
    study.tell(trial, value, reason)
    print(f"  {config['metric']} {_number(value)}" if ended.error is None else f"  failed: {reason}", flush=True)


def _finish(study: Study, config: dict[str, Any], home: Path) -> None:
    """Writes ``study.json``, and prints the table of trials and the best command line."""
    trials = [_row(number, trial, home) for number, trial in enumerate(study.ended())]
    best = None
    if study.best is not None:
        best = next(row for row in trials if row["value"] == study.best.value)
        best |= {"command": shlex.join(["distill", "train", *config["overrides"], *as_words(best["params"])])}
    about = {key: config[key] for key in ("metric", "direction", "sampler_seed", "space", "overrides")}
    content = redact(about | {"best": best, "trials": trials})
    (home / FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")
    print("\n" + "\n".join(_table(content["trials"], config["metric"])))
    if best is not None:
        value = _number(best["value"])
        print(f"\nbest: trial {best['trial']}, {config['metric']} {value}\n  {content['best']['command']}")
    print(f"\nstudy directory: {job.shown(home)}", flush=True)


def _row(number: int, trial: FrozenTrial, home: Path) -> dict[str, Any]:
    return {
        "trial": number,
        "status": "ok" if trial.value is not None else "failed",
        "value": trial.value,
        "params": trial.params,
        "reason": trial.user_attrs.get("reason"),
        "dir": str(_folder(home, number)),
    }


def _table(trials: Sequence[dict[str, Any]], metric: str) -> Iterator[str]:
    rows = [("trial", "status", metric, "parameters", "directory")]
    for trial in trials:
        parameters = " ".join(as_words(trial["params"]))
        rows.append(
            (str(trial["trial"]), trial["status"], _number(trial["value"]), parameters, Path(trial["dir"]).name)
        )
    yield from record.aligned(rows)
    yield from (f"\ntrial {trial['trial']} failed: {trial['reason']}" for trial in trials if trial["reason"])


def _folder(home: Path, number: int) -> Path:
    return home / f"trial-{number:03d}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
