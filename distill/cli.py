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
from pathlib import Path
from typing import cast

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from distill import __version__
from distill.commands import compose, overrides
from distill.config import suggest
from distill.config.redact import RedactFilter, redact, redact_text
from distill.config.world import world_size
from distill.errors import RunError, UserError

COMMANDS = {
    "train": "train a student; without arguments: on-policy distillation of the embedded models",
    "eval": "accuracy of one checkpoint: checkpoint=PATH",
    "report": "one HTML page about runs: runs=[PATH,…] out=FILE",
    "analyze": "what changed between two checkpoints: source=PATH trained=PATH out=DIR",
    "list": "recipes, experiments and the options of every group",
    "validate": "check a configuration of train without running it",
}
HELP = f"""distill {__version__}: distillation of language models

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


class JobFailedError(Exception):
    """A job of a sweep failed and has said why; Hydra goes on with the other jobs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 failed, 2 a user's mistake, 128 + n stopped by signal n."""
    # Before torch loads: OpenMP threads that spin while they wait slow a shared CPU down several times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = [*(sys.argv[1:] if argv is None else argv)]
    command, rest = (arguments[0], arguments[1:]) if arguments else (None, [])
    full = os.environ.get(FULL_ERROR) == "1"
    try:
        if command in ("--help", "-h", "--version"):
            print(f"distill {__version__}" if command == "--version" else HELP)
            return 0
        if command is None:
            print(HELP, file=sys.stderr)
            return USER_ERROR
        if command not in COMMANDS:
            raise UserError("COMMAND", command, f"one of {', '.join(COMMANDS)}{suggest.close(command, COMMANDS)}")
        return _dispatch(command, rest, full)
    except JobFailedError as failure:
        return int(failure.args[0])
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
    for flag in ("config_path", "config_name", "experimental_rerun"):
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag.replace('_', '-')}", getattr(args, flag), "left out (--config-dir adds groups)")
    if command in ("train", "validate"):
        args.overrides = overrides.completed(args.overrides)
    multirun = args.multirun or any(word.lower() == "hydra.mode=multirun" for word in args.overrides)
    if command in ("list", "validate"):
        if args.help:
            print(HELP)
            return 0
        run = importlib.import_module(f"distill.commands.{command}").run
        return int(run(args.overrides, multirun, args.config_dir))
    if multirun and world_size() > 1:
        raise UserError("-m", f"WORLD_SIZE={world_size()}", "left out under a launcher, which starts one run at a time")
    shows = args.help or args.hydra_help or args.cfg or args.info or args.shell_completion
    if shows and args.multirun:
        raise UserError("-m", True, "left out with --cfg, --info and --help, which show one configuration")
    if not shows:
        compose.check(command, args.overrides, multirun=multirun, config_dir=args.config_dir)
    with compose.session(args.config_dir) as loader:
        groups = overrides.groups(loader)
    flags = [word for word in arguments if word not in args.overrides]
    _run_hydra(command, [*flags, *(overrides.rewrite(word, groups) for word in args.overrides)], full)
    return 0


def _run_hydra(command: str, arguments: Sequence[str], full: bool) -> None:
    """Hands over to Hydra, which calls back with the configuration of each job."""
    original = sys.argv

    def task(config: DictConfig) -> None:
        sys.argv = original
        _run_job(command, config, full)

    sys.argv = [f"distill {command}", *arguments]
    try:
        with _hydra_raises():
            hydra.main(str(compose.conf_dir()), command, compose.VERSION_BASE)(task)()
    finally:
        sys.argv = original


def _run_job(command: str, config: DictConfig, full: bool) -> None:
    node = cast(DictConfig, HydraConfig.get())
    sweeping = node.mode == RunMode.MULTIRUN
    _log_to_stderr()
    try:
        if sweeping:
            _redact_file(Path(node.sweep.dir) / "multirun.yaml")
            print(f"job {node.job.num}: {node.runtime.output_dir}", flush=True)
        values = compose.validated(command, config, node).config
        run = importlib.import_module(f"distill.commands.{command}").run
        status = int(run(values, Path(node.runtime.output_dir)))
    except (Exception, KeyboardInterrupt) as error:
        status = _report(error, full)
    if status == 0:
        return
    if sweeping and status < SIGNALLED:
        raise JobFailedError(status)
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


def _redact_file(path: Path) -> None:
    """Hydra writes a sweep's configuration before anybody can mask it."""
    if path.exists():
        content = redact(yaml.safe_load(path.read_text(encoding="utf-8")))
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


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
