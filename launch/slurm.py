#!/usr/bin/env python3
"""Renders and submits a batch script that runs ``distill train`` under SLURM, one task per device.

    python launch/slurm.py --nodes 2 --gpus-per-node 8 --time 04:00:00 -- recipe=opd trainer=zero3

Everything after ``--`` goes to ``distill train``. ``--dry-run`` prints the script and the command instead. The job
saves before its time is up or when it is preempted, goes back to the queue and continues: see docs/slurm.md.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATE = Path(__file__).with_name("slurm.sbatch.j2")
OURS = ("hydra.run.dir", "resume")
"""Overrides that the script sets."""


def parser() -> argparse.ArgumentParser:
    text, form = (__doc__ or "").splitlines()[0].replace("``", ""), argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        description=text, formatter_class=form, usage="%(prog)s [OPTION]... [--] [KEY=VALUE]..."
    )
    add = parser.add_argument
    add("--dry-run", action="store_true", help="print the script and the command, submit nothing")
    add("--name", type=name, default="distill", help="job name, and first part of the run directory's name")
    add("--nodes", type=count, default=1)
    add("--gpus-per-node", type=count, metavar="N", help="GPUs, and tasks, on each node")
    add("--tasks-per-node", type=count, metavar="N", help="tasks on each node of a CPU run")
    add("--cpus-per-task", type=count, default=4, metavar="N")
    add("--mem", type=word, metavar="SIZE", help="memory per node; 0 is all of it")
    add("--time", type=word, default="04:00:00", help="time limit of one start of the job")
    for option in ("partition", "account", "qos", "constraint"):
        add(f"--{option}", type=word)
    add("--sbatch", type=word, action="append", default=[], metavar="OPTION", help="one more option, as --sbatch=--x=y")
    add("--seeds", type=seeds, metavar="0,1,2", help="a job array with one task per seed")
    add("--runs", type=folder, default="runs", metavar="DIR", help="folder of run directories and job output")
    add("--signal-seconds", type=count, default=180, metavar="S", help="USR1 comes this long before the time limit")
    add("--max-restarts", type=int, default=100, metavar="N", help="starts after a preemption or a time limit")
    add("--retries", type=int, default=0, metavar="N", help="starts after a failure")
    add("--python", default="python", help="the interpreter of the tasks, such as .venv/bin/python")
    add("--module", action="append", default=[], metavar="NAME", help="module load NAME")
    add("--env", type=variable, action="append", default=[], metavar="KEY=VALUE", help="exported to the tasks")
    image = parser.add_mutually_exclusive_group()
    image.add_argument("--container-image", type=word, metavar="IMAGE", help="run in a container of Pyxis and Enroot")
    image.add_argument("--apptainer", type=word, metavar="IMAGE", help="run in a container of Apptainer")
    add(
        "--mount",
        type=word,
        action="append",
        default=[],
        metavar="SOURCE:TARGET",
        help="one more folder of the container",
    )
    add("overrides", nargs="*", metavar="KEY=VALUE", help="of distill train")
    return parser


def render(options: argparse.Namespace) -> str:
    """The batch script."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    cwd, runs = Path.cwd(), Path(options.runs)
    folders = [f"{folder}:{folder}" for folder in (cwd, *([] if runs.is_relative_to(cwd) else [runs]))]
    values = vars(options) | {
        "sbatch": list(sbatch_options(options)),
        "modules": options.module,
        "environment": options.env,
        "mounts": ",".join([*folders, *options.mount]),
        "gpus": options.gpus_per_node,
        "cwd": cwd,
    }
    return environment.get_template(TEMPLATE.name).render(values)


def sbatch_options(options: argparse.Namespace) -> Iterator[str]:
    """The ``#SBATCH`` lines."""
    yield f"--job-name={options.name}"
    yield f"--nodes={options.nodes}"
    yield f"--ntasks-per-node={options.gpus_per_node or options.tasks_per_node or 1}"
    yield f"--cpus-per-task={options.cpus_per_task}"
    if options.gpus_per_node:
        # Not --gpus-per-task: a task that sees one GPU only cannot reach its neighbours' over NVLink.
        yield f"--gres=gpu:{options.gpus_per_node}"
    for option in ("mem", "time", "partition", "account", "qos", "constraint"):
        if (value := getattr(options, option)) is not None:
            yield f"--{option}={value}"
    if options.seeds:
        yield f"--array=0-{len(options.seeds) - 1}"
    yield f"--chdir={word(str(Path.cwd()))}"
    yield f"--output={options.runs}/%x-{'%A_%a' if options.seeds else '%j'}.out"
    yield "--open-mode=append"
    yield "--requeue"
    # Without "B:", which would send it to the batch shell alone.
    yield f"--signal=USR1@{options.signal_seconds}"
    yield from options.sbatch


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints or submits the script; returns the exit status."""
    cli = parser()
    options = cli.parse_args(arguments)
    if options.gpus_per_node and options.tasks_per_node:
        cli.error("--tasks-per-node is for CPU runs: with --gpus-per-node there is one task per GPU")
    for override in options.overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key in OURS or (key == "seed" and options.seeds):
            cli.error(f"{key} is set by the script; leave it out" + (" (see --runs)" if key in OURS else ""))
    script, command = render(options), ["sbatch", "--parsable"]
    if options.dry_run:
        print(f"{script}\n# {shlex.join(command)} < SCRIPT")
        return 0
    # sbatch does not make the folder of its output: a job that cannot write there fails without a word.
    Path(options.runs).mkdir(parents=True, exist_ok=True)
    try:
        return subprocess.run(command, input=script, text=True, check=False).returncode
    except FileNotFoundError:
        cli.error("there is no sbatch on this machine; --dry-run prints the script")


def word(text: str) -> str:
    """A value that an ``#SBATCH`` line and a shell take as it is, within quotes."""
    if not re.fullmatch(r"[\w./:,=@%+*&|#\[\]()-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} has characters that an #SBATCH line cannot take")
    return text


def folder(text: str) -> str:
    """An absolute path: a requeued job may start elsewhere."""
    path = str(Path(text).absolute())
    if re.search("[%,:#]", path):
        text = "which sbatch or a container's mounts would read"
        raise argparse.ArgumentTypeError(f"{path!r} has one of % , : # {text}")
    return word(path)


def name(text: str) -> str:
    """A part of file names."""
    if not re.fullmatch(r"[A-Za-z0-9_.+-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of letters, digits and . _ + -")
    return text


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count")
    return int(text)


def seeds(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no list such as 0,1,2")
    return [int(seed) for seed in text.split(",")]


def variable(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*", key):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


if __name__ == "__main__":
    sys.exit(main())
