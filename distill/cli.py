"""``distill COMMAND [KEY=VALUE | GROUP=OPTION]...``: the command line, also as ``python -m distill``.

Imports neither torch nor Lightning: ``--help``, ``--cfg``, listing and validation answer at once, and a configuration
is wrong before anything heavy has loaded.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import TaskFunction
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from distill import __version__
from distill.commands import compose, overrides, sweep
from distill.config import checks, suggest
from distill.config.redact import RedactFilter, redact_text
from distill.config.world import adopt_srun, world_size
from distill.errors import RunError, UserError

COMMANDS = {
    "train": "train a student; without arguments: on-policy distillation of the embedded models",
    "export": "a Hugging Face folder from a checkpoint: checkpoint=PATH out=DIR",
    "eval": "accuracy of one checkpoint: checkpoint=PATH",
    "cache": "what a teacher says about the training data, for runs with teacher=cached: words of train, cache.out=DIR",
    "label": "rows that a teacher writes: answers to the data's prompts, or new rows like the data: out=DIR",
    "select": "the rows that a teacher knows better than a reference model: reference.path=PATH out=DIR",
    "report": "one HTML page about runs: runs=[PATH,…] out=FILE",
    "analyze": "what changed between two checkpoints: source=PATH trained=PATH out=DIR",
    "mask": "the coordinates an update touched, or a control: source=PATH trained=PATH out=FILE",
    "dashboard": "a W&B workspace and comparison report of a project: project=NAME groups=[NAME,…]",
    "plan": "memory per rank, disk and tokens of a run of train, before it starts",
    "list": "recipes, experiments and the options of every group",
    "tune": "search for the best values of train's keys: space={KEY: VALUES} metric=KEY trials=N",
    "validate": "check a configuration of train without running it",
}
HELP = f"""distill {__version__}: distillation of language models and image classifiers

usage: distill COMMAND [KEY=VALUE | GROUP=OPTION]... [-m] [--cfg job] [--help]

{chr(10).join(f"  {name:<10}{text}" for name, text in COMMANDS.items())}

distill COMMAND --help shows every key and group; HYDRA_FULL_ERROR=1 shows tracebacks of mistakes too.
"""
FULL_ERROR = "HYDRA_FULL_ERROR"
NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
LOST_RANK = ("Connection closed by peer", "Connection reset by peer")
"""What gloo says in the ranks that are left."""
USER_ERROR, SIGNALLED = 2, 128
"""Exit statuses: a user's mistake, and what is added to a signal's number."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0 done, 1 failed, 2 a user's mistake, 124 out of time, 128 + n stopped by signal n."""
    # Before torch loads: OpenMP threads that spin while they wait slow a shared CPU down several times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = [*(sys.argv[1:] if argv is None else argv)]
    command, rest = (arguments[0], arguments[1:]) if arguments else (None, [])
    full = os.environ.get(FULL_ERROR) == "1"
    try:
        adopt_srun()
        if command in ("--help", "-h", "--version"):
            print(f"distill {__version__}" if command == "--version" else HELP)
            return 0
        if command is None:
            print(HELP, file=sys.stderr)
            return USER_ERROR
        if command not in COMMANDS:
            raise UserError("COMMAND", command, f"one of {', '.join(COMMANDS)}{suggest.close(command, COMMANDS)}")
        return _dispatch(command, rest, full)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SIGNALLED + signal.SIGPIPE
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except (Exception, KeyboardInterrupt) as error:
        return _report(error, full)


def _dispatch(command: str, arguments: Sequence[str], full: bool) -> int:
    parser = get_args_parser()
    parser.prog = f"distill {command}"
    args = parser.parse_intermixed_args(arguments)
    flags = [word for word in arguments if word not in args.overrides]
    for flag in ("config_path", "config_name", "experimental_rerun"):
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag.replace('_', '-')}", getattr(args, flag), "left out (--config-dir adds groups)")
    if command in ("train", "validate", "plan", "cache"):
        args.overrides = overrides.completed(args.overrides)
    multirun = args.multirun or any(word.lower() == "hydra.mode=multirun" for word in args.overrides)
    if multirun and not args.help and command != "list":
        composed = "train" if command == "validate" else command
        args.overrides = compose.sweep_words(composed, args.overrides, args.config_dir)
    if command in ("list", "validate"):
        if args.help:
            print(HELP)
            return 0
        run = importlib.import_module(f"distill.commands.{command}").run
        return int(run(args.overrides, multirun, args.config_dir))
    _refuse_ranks(command, multirun)
    if command == "tune":
        args.overrides = importlib.import_module("distill.commands.tune").split(args.overrides, args.config_dir)
    shows = args.help or args.hydra_help or args.cfg or args.info or args.shell_completion
    if shows and args.multirun:
        raise UserError("-m", True, "left out with --cfg, --info and --help, which show one configuration")
    if not shows:
        checked = compose.check(command, args.overrides, multirun=multirun, config_dir=args.config_dir)
        if command == "tune":
            importlib.import_module("distill.commands.tune").check(checked[0].config)
    if multirun and not shows:
        return sweep.run(command, args.overrides, args.config_dir, partial(_run_hydra, command, flags))
    with compose.session(args.config_dir) as loader:
        groups = overrides.groups(loader)
    task = partial(_run_job, command, full, sys.argv)
    _run_hydra(command, flags, task, [overrides.rewrite(word, groups) for word in args.overrides])
    return 0


def _refuse_ranks(command: str, multirun: bool) -> None:
    """A sweep or a search is one process that starts others."""
    if command == "tune" and world_size() > 1:
        raise UserError("tune", f"WORLD_SIZE={world_size()}", "started as one process, without torchrun or srun")
    if command == "tune" and multirun:
        raise UserError("-m", "given", "left out: tune starts its trials itself, one after the other")
    if multirun and world_size() > 1:
        allowed = f"left out under torchrun or srun, which start the processes of one run; sweep with {checks.PER_JOB}"
        raise UserError("-m", f"WORLD_SIZE={world_size()}", allowed)


def _run_hydra(command: str, flags: Sequence[str], task: TaskFunction, words: Sequence[str]) -> None:
    """Hands over to Hydra, which calls ``task`` with the configuration of each job."""
    original = sys.argv
    sys.argv = [f"distill {command}", *flags, *words]
    try:
        with _hydra_raises():
            hydra.main(str(compose.conf_dir()), command, compose.VERSION_BASE)(task)()
    finally:
        sys.argv = original


def _run_job(command: str, full: bool, argv: list[str], config: DictConfig) -> None:
    """Runs a command with its configuration; ``argv`` is the command line before Hydra's was put in its place."""
    sys.argv = argv
    node = cast(DictConfig, HydraConfig.get())
    _log_to_stderr()
    try:
        values = compose.validated(command, config, node).config
        run = importlib.import_module(f"distill.commands.{command}").run
        status = int(run(values, Path(node.runtime.output_dir)))
    except (Exception, KeyboardInterrupt) as error:
        status = _report(error, full)
    if status != 0:
        raise SystemExit(status)


def _report(error: BaseException, full: bool) -> int:
    """Says on stderr what went wrong, secrets masked, and returns the exit status."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        error = compose.explained(error, sys.argv[1:])
    rank = f"[rank {os.environ.get('RANK', '0')}] " if "WORLD_SIZE" in os.environ else ""
    if isinstance(error, OSError) and error.errno in NO_WRITING:
        where = error.filename or "the folder written to"
        error = RunError(f"{error.strerror}: {where}; what was saved before is intact.")
    elif rank and isinstance(error, RuntimeError) and any(words in str(error) for words in LOST_RANK):
        error = RunError("another rank has ended; its message tells why.")
    known = isinstance(error, UserError | RunError | KeyboardInterrupt)
    text = str(error) or "interrupted" if known and not full else "".join(traceback.format_exception(error))
    for line in redact_text(text).rstrip().splitlines():
        print(f"{rank}{'error: ' if known and not full else ''}{line}", file=sys.stderr)
    if isinstance(error, KeyboardInterrupt):
        return SIGNALLED + signal.SIGINT
    return USER_ERROR if isinstance(error, UserError) else 1


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(RedactFilter())
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", handlers=[handler])
    if os.environ.get("RANK", "0") == "0":
        logging.getLogger("distill").setLevel(logging.INFO)


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Within it Hydra raises what went wrong, where it would print some of it and exit 1."""
    before = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = before
