"""Mistakes a stranger makes, through the command line: one line each that says what to do, and nothing is lost."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import distill
from distill import checkpoint, cli, startup
from distill.callbacks.jsonl import JsonlLogger
from distill.module import DistillModule
from distill.types import Batch
from tests import tiny

ASSETS = Path(distill.__file__).parent / "assets"
SIZES = ("trainer.max_steps=2", "data.batch_size=4", "data.eval_size=4", "callbacks=none", "logger.progress=off")
SFT = ("recipe=sft", "student=llama_tiny", *SIZES)
OPD = ("recipe=opd", *SIZES)
EVERY_2 = ("callbacks.checkpoint.every_n_steps=2", "callbacks.checkpoint.keep_last=9")
TENSOR = "model.layers.0.mlp.up_proj.weight"


def model(folder: Path, source: str = "student", **weights: Any) -> Path:
    """A copy of an embedded model; ``weights`` replace its tensors (None removes one)."""
    shutil.copytree(ASSETS / source, folder)
    file = folder / "model.safetensors"
    if weights:
        kept = {name: tensor for name, tensor in (load_file(file) | weights).items() if tensor is not None}
        save_file(kept, file, metadata={"format": "pt"})
    return folder


def rewrite(file: Path, change: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def swap_two_digits(tokenizer: dict[str, Any]) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["0"], vocabulary["1"] = vocabulary["1"], vocabulary["0"]


def bring_code(config: dict[str, Any]) -> None:
    classes = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    config |= {"model_type": "strange", "architectures": ["Model"], "auto_map": classes}


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and data with one fault each."""
    root = tmp_path_factory.mktemp("bad")
    tensor = load_file(ASSETS / "student" / "model.safetensors")[TENSOR]
    model(root / "nan", **{TENSOR: torch.full_like(tensor, float("nan"))})
    model(root / "inf", **{TENSOR: torch.full_like(tensor, float("inf"))})
    model(root / "lacking", **{TENSOR: None})
    cut = model(root / "cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    (model(root / "index") / "model.safetensors.index.json").write_text("{")
    pickled = model(root / "pickle") / "model.safetensors"
    torch.save(load_file(pickled), root / "pickle" / "pytorch_model.bin")
    pickled.unlink()
    code = model(root / "code")
    rewrite(code / "config.json", bring_code)
    (code / "code.py").write_text(f"open({str(root / 'ran')!r}, 'w')\n")
    (root / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    fewer = model(root / "fewer", "teacher") / "tokenizer.json"
    rewrite(fewer, lambda content: content["model"]["vocab"].popitem())
    rewrite(model(root / "swapped", "teacher") / "tokenizer.json", swap_two_digits)
    row, prompt = json.dumps({"prompt": "1+1=", "completion": "2"}), json.dumps({"prompt": "1+1="})
    long = json.dumps({"prompt": "1" * 64, "completion": "2"})
    rows = {"broken": [row, '{"prompt":', row], "empty": [], "prompts": [*[row] * 9, prompt], "long": [row, long]}
    for name, lines in {**rows, "one": [row], "good": [row] * 20}.items():
        (root / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
    (root / "nothing").mkdir()
    return root


def refusal(capsys: pytest.CaptureFixture[str], *words: str, status: int = 2) -> str:
    """The one line that a command line is refused with."""
    capsys.readouterr()
    assert cli.main(words) == status
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if not line.startswith(("INFO ", "wandb: "))]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


SETTINGS = {
    "optimizer=adam": "`optimizer` must be one of adamw, sgd, sgd_momentum (did you mean 'adamw'?), but is 'adam'.",
    "callbacks.extra.x._target_=os.system": "`callbacks.extra.x._target_` must be one of distill.callbacks.*, ",
    "trainer.max_steps=ten": "`trainer.max_steps` must be a whole number, but is 'ten'.",
    "logger.tags=a": "`logger.tags` must be a list (KEY=[VALUE,…]), but is 'a'.",
    "dta.path=1": "`dta.path` must be a known key (did you mean `data.path`? ",
    "+typo=1": "`typo` must be a known key (",
    "data=text": "`data.path` must be given with data.source 'text', but is None.",
    "objective.beta=0": "`objective.beta` must be strictly between 0 and 1 for 'jsd', ",
    "objective.label_weight=1": "`objective.label_weight` must be 0 when every rollout is the student's own",
    "resume=/nonexistent": "`resume` must be null, 'auto', or the folder of an existing run or checkpoint, but is",
    "trainer=ddp_cpu": "`trainer.strategy` must be 'single' unless a launcher starts the processes: torchrun ",
}


def test_settings_are_refused_together_and_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    began = time.monotonic()
    assert cli.main(["train", "objective=jsd", *SETTINGS, f"hydra.run.dir={tmp_path}/run"]) == 2
    assert time.monotonic() - began < 5
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(SETTINGS)
    for expected in SETTINGS.values():
        assert any(line.startswith(f"error: {expected}") for line in lines), expected
    assert not (tmp_path / "run").exists()


def test_sampled_tokens_need_samples(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "train", *OPD, "objective=sampled_token", "rollout=dataset")
    assert line.startswith(
        "`rollout.kind` must be 'on_policy' with 'sampled_token', which needs samples of the student"
    )


def test_no_callbacks_means_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "callbacks=none", "--cfg", "job"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)["callbacks"]
    assert [shown[name] for name in ("sparsity", "evaluation", "checkpoint")] == [None, None, None]


STUDENTS = {
    "/nope": "an existing model folder, a `.gguf` file, `package://NAME[/SUBPATH]` or a hub id",
    "nope/model": "a folder or hub id with a tokenizer",
    "{bad}/cut": "a complete safetensors file",
    "{bad}/cut.gguf": "a complete GGUF file",
    "{bad}/index": "a readable index of weight files",
    "{bad}/lacking": f"a checkpoint with every weight (1 missing, first {TENSOR!r})",
    "{bad}/nan": f"a checkpoint of finite weights ({TENSOR!r} holds NaN or infinity)",
    "{bad}/pickle": "a folder with safetensors weights (pickled ones need `student.allow_pickle=true`)",
}


@pytest.mark.parametrize("path", STUDENTS)
def test_students(
    path: str, bad: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    place = path.format(bad=bad)
    words = (*SFT, "student=path", f"student.path={place}", f"hydra.run.dir={tmp_path}/run")
    line = refusal(capsys, "train", *words)
    assert line.startswith("`student.path` must be ")
    assert STUDENTS[path] in line
    assert f"but is '{place}" in line
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


TEACHERS = {
    "/nope": "an existing model folder",
    "{bad}/cut": "a complete safetensors file",
    "{bad}/inf": "finite weights",
    "{bad}/pickle": "`teacher.allow_pickle=true`",
    "{bad}/fewer": "a model with the student's tokenizer (the student's has 19 tokens, the teacher's 18)",
    "{bad}/swapped": "a model with the student's tokenizer (id 3 is '0' for the student, '1' for the teacher)",
}


@pytest.mark.parametrize("path", TEACHERS)
def test_teachers(path: str, bad: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = (*OPD, f"teacher.path={path.format(bad=bad)}", f"hydra.run.dir={tmp_path}/run")
    line = refusal(capsys, "train", *words)
    assert line.startswith("`teacher.path` must be ")
    assert TEACHERS[path] in line


@pytest.mark.parametrize("key", ["student", "teacher"])
def test_code_of_a_model_is_not_run(key: str, bad: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refusal(capsys, "train", *OPD, f"{key}.path={bad}/code", f"hydra.run.dir={tmp_path}/run")
    assert line.startswith(f"`{key}.trust_remote_code` must be true to run the Python code that '{bad}/code' brings")
    assert not (bad / "ran").exists()


DATA = {
    "path=/nope.jsonl": "`data.path` must be an existing .jsonl or .parquet file",
    "path={bad}/broken.jsonl": "{bad}/broken.jsonl, line 2: Expecting value",
    "path={bad}/empty.jsonl": "`data.path` must be data with at least one row",
    "path={bad}/one.jsonl": "`data.path` must be data with at least two rows",
    "path={bad}/prompts.jsonl": "(recipe=opd), but is '{bad}/prompts.jsonl, line 10: a prompt alone'.",
    "path={bad}/long.jsonl": "fewer than 64 tokens (the smaller of data.max_length and the model's context), "
    "or data.too_long=drop, which leaves it out, but is '{bad}/long.jsonl, line 2: a prompt of 64 tokens'.",
    "path={bad}/good.jsonl data.eval_path=/nope": "`data.eval_path` must be an existing .jsonl",
    "path={bad}/good.jsonl data.chat_template=true": "`data.chat_template` must be false for a tokenizer without",
}


@pytest.mark.parametrize("words", DATA)
def test_data(words: str, bad: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    given = f"data.{words}".format(bad=bad).split()
    line = refusal(capsys, "train", *SFT, "data=text", *given, f"hydra.run.dir={tmp_path}/run")
    assert DATA[words].format(bad=bad) in line


def test_unknown_task(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = (*SFT, "data=reasoning_gym", "data.task=chain_sun", f"hydra.run.dir={tmp_path}/run")
    assert "tasks, such as chain_sum" in refusal(capsys, "train", *words)


def test_more_held_out_examples_than_there_are(bad: Path, tmp_path: Path) -> None:
    words = (*SFT, "data=text", f"data.path={bad}/good.jsonl", "data.eval_size=1000", f"hydra.run.dir={tmp_path}/run")
    assert cli.main(["train", *words]) == 0


CALLBACKS = {
    "distill.callbacks.nope.Nope": "No module named 'distill.callbacks.nope'",
    "lightning.pytorch.callbacks.Timer callbacks.extra.x.nope=1": "unexpected keyword argument 'nope'",
    "distill.callbacks.metrics.Clock": "a class of Lightning callbacks",
}


@pytest.mark.parametrize("target", CALLBACKS)
def test_callbacks(target: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = f"callbacks.extra.x._target_={target}".split()
    line = refusal(capsys, "train", *SFT, *words, f"hydra.run.dir={tmp_path}/run")
    assert line.startswith("`callbacks.extra.x._target_` must be a class ")
    assert CALLBACKS[target] in line


def test_no_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)
    line = refusal(capsys, "train", *SFT, "trainer=gpu", f"hydra.run.dir={tmp_path}/run")
    assert line.startswith("`trainer.accelerator` must be 'cpu' (choose trainer=cpu")


def test_lora_without_its_package(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    line = refusal(capsys, "train", *SFT, "student.lora.r=2", f"hydra.run.dir={tmp_path}/run")
    assert "pip install 'distill[lora]'" in line


def test_wandb_without_a_login_neither_asks_nor_waits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import wandb

    wandb.teardown()
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    try:
        line = refusal(capsys, "train", *SFT, "logger=wandb", f"hydra.run.dir={tmp_path}/run")
    finally:
        # W&B keeps the mode of its first run for the whole process.
        wandb.teardown()
    assert line.startswith("`logger.wandb` must be 'offline' (choose logger=wandb_offline) unless `wandb login`")
    assert wandb.run is None


def tree(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """A finished run of four steps with two checkpoints."""
    run_dir = tmp_path / "used"
    assert cli.main(["train", *SFT, *EVERY_2, "trainer.max_steps=4", f"hydra.run.dir={run_dir}"]) == 0
    return run_dir


def test_a_start_that_fails_takes_nothing_from_a_run(used: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, folder = tree(used), f"hydra.run.dir={used}"
    earlier = (*SFT, folder, *EVERY_2, "trainer.max_steps=4", f"resume={used}/checkpoints/step-00000002")
    auto = (*SFT, folder, *EVERY_2, "resume=auto")
    cases = {
        (*SFT, folder): "`hydra.run.dir` must be a new folder (or pass resume=auto",
        (*earlier, "data=text", "data.path=/nope"): "`data.path` must be an existing",
        (*earlier, "student=path", "student.path=/nope"): "`student.path` must be an existing",
        (*earlier, "student.config.hidden_size=32"): "`resume` must be a checkpoint of this student (",
        (*earlier, "student.lora.r=2"): "`resume` must be a checkpoint of this student (",
        (*earlier, "optimizer=sgd"): "`optimizer.name` must be the optimizer of",
        (*auto, "trainer.max_steps=3"): "`trainer.max_steps` must be at least the 4 steps of",
    }
    for words, expected in cases.items():
        assert refusal(capsys, "train", *words).startswith(expected)
        assert tree(used) == before
    state = used / "checkpoints" / "step-00000004" / checkpoint.STATE
    state.write_bytes(state.read_bytes()[:-10])
    assert "must be an intact checkpoint directory (state.ckpt of rank 0 has " in refusal(
        capsys, "train", *auto, "trainer.max_steps=4"
    )


def test_resume_with_nothing_there(bad: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["train", *SFT, "resume=auto", f"hydra.run.dir={tmp_path}/run"]) == 0
    assert [record["step"] for record in tiny.metrics(tmp_path / "run")] == [1, 2]
    line = refusal(capsys, "train", *SFT, f"resume={bad}/nothing", f"hydra.run.dir={tmp_path}/other")
    assert line.startswith("`resume` must be auto, or the path of a run or checkpoint directory")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Stands for a disk that is full: nobody needs to be root, and ``write`` fails the same way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk(used: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = (*SFT, *EVERY_2, "trainer.max_steps=8", "resume=auto", f"hydra.run.dir={used}")
    with largest_file(1_000_000):
        line = refusal(capsys, "train", *words, status=1).partition("WARNING")[0]
    assert line == f"cannot save a checkpoint in {used}/checkpoints: File too large; earlier checkpoints are intact."
    with largest_file(100_000):
        line = refusal(capsys, "train", *SFT, f"hydra.run.dir={tmp_path}/other", status=1)
    assert line.startswith(f"cannot save the student in {tmp_path}/other/source: ")
    assert not list((tmp_path / "other").glob(".*"))
    assert cli.main(["train", *words]) == 0
    assert [record["step"] for record in tiny.metrics(used)] == list(range(1, 9))


def test_no_room_for_metrics(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(JsonlLogger, "log_metrics", full)
    line = refusal(capsys, "train", *SFT, f"hydra.run.dir={tmp_path}/run", status=1)
    assert line == "No space left on device: the folder written to; what was saved before is intact."


def test_folders_that_cannot_be_written(bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, student = bad / "good.jsonl", ASSETS / "student"
    assert "`hydra.run.dir` must be a folder to write into" in refusal(capsys, "train", f"hydra.run.dir={file}/run")
    assert "`hydra.sweep.dir` must be a folder" in refusal(capsys, "train", "-m", "seed=1", f"hydra.sweep.dir={file}")
    assert "`out` must be a file" in refusal(capsys, "eval", f"checkpoint={student}", f"out={file}/x.json")
    assert "`out` must be a file" in refusal(capsys, "report", f"runs=[{bad}]", f"out={bad}")
    words = (f"source={student}", f"trained={student}", f"out={file}")
    assert "`out` must be a folder to write into" in refusal(capsys, "analyze", *words)


COMMANDS = {
    "report runs=[/nope]": "`runs` must be existing run directories",
    "report runs=/nope": "`runs` must be a list (KEY=[VALUE,…])",
    "report runs=[{bad}/nothing]": "`runs` must be a run directory",
    "eval checkpoint=/nope": "`checkpoint` must be a finished run directory",
    "eval checkpoint={bad}/pickle": "`checkpoint` must be a finished run directory (with model/) or a Hugging Face",
    "eval checkpoint={bad}/cut": "`checkpoint` must be a complete safetensors file",
    "eval checkpoint={bad}/nan": "`checkpoint` must be a checkpoint of finite weights",
    "eval checkpoint={bad}/code": "`checkpoint` must be a model that needs no Python code of its own",
    "analyze source=/nope trained=/nope out={bad}/out": "`source` must be an existing folder with safetensors",
    "analyze source={bad}/cut trained={bad}/cut out={bad}/out": "`source` must be readable safetensors",
    "analyze source={bad}/index trained={bad}/cut out={bad}/out": "`source` must be readable JSON",
    "analyze source={bad}/nan trained={bad}/inf out={bad}/out": "`source` must be a checkpoint of finite weights",
}


@pytest.mark.parametrize("words", COMMANDS)
def test_other_commands(words: str, bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, *words.format(bad=bad).split()).startswith(COMMANDS[words])
    assert not (bad / "out").exists()


def test_commands_on_a_damaged_run(
    used: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (used / "config.yaml").write_text("a: [")
    (used / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff{')
    assert "with the config.yaml that the run wrote" in refusal(capsys, "eval", f"checkpoint={used}")
    assert cli.main(["report", f"runs=[{used}]"]) == 0
    page = (used / "report.html").read_text()
    assert "config.yaml is not readable" in page
    assert "line 2 (the last: the run was cut off while writing) is not readable" in page
    words = (*SFT, *EVERY_2, "trainer.max_steps=4", "resume=auto", f"hydra.run.dir={used}")
    assert cli.main(["train", *words]) == 0
    assert "config.yaml is not readable" in caplog.text


def test_a_signal_before_the_first_step_stops_at_once(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        monkeypatch.setattr(startup, "measure", lambda *_, number=number, **__: signal.raise_signal(number))
        words = (*OPD, "callbacks.evaluation.samples=0", f"hydra.run.dir={tmp_path}/{status}")
        assert cli.main(["train", *words]) == status
        assert capfd.readouterr().err == f"{number.name}: stopping at once.\n"
        assert not (tmp_path / str(status) / "metrics.jsonl").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_run_can_go_on(
    number: signal.Signals, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(module: DistillModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        if module.global_step == 3:
            signal.raise_signal(number)
        return real(module, batch, batch_idx)

    words = (*SFT, "trainer.max_steps=6", "callbacks.checkpoint.every_n_steps=5", f"hydra.run.dir={tmp_path}")
    real = DistillModule.training_step
    with monkeypatch.context() as patch:
        patch.setattr(DistillModule, "training_step", send)
        assert cli.main(["train", *words]) == status
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert checkpoint.verify(newest).step == 4
    assert not (tmp_path / "model").exists()
    assert cli.main(["train", *words, "resume=auto"]) == 0
    assert [record["step"] for record in tiny.metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


def start(*words: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *options, "-m", "distill", "train", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_process_that_is_interrupted(tmp_path: Path) -> None:
    process = start(*SFT, *EVERY_2, "trainer.max_steps=100000", f"hydra.run.dir={tmp_path}")
    deadline = time.monotonic() + 60
    while checkpoint.latest(tmp_path) is None:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[0] == "SIGINT: finishing this step, then saving and stopping."
    assert "Traceback" not in err
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert checkpoint.verify(newest).step == tiny.metrics(tmp_path)[-1]["step"]


@pytest.mark.parametrize("module", ["hydra", "torch"])
def test_an_interrupt_while_starting(module: str, tmp_path: Path) -> None:
    process = start(*SFT, f"hydra.run.dir={tmp_path}", options=("-X", "importtime"))
    assert process.stderr is not None
    for line in process.stderr:
        if f" {module}." in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.endswith("error: interrupted\n")
