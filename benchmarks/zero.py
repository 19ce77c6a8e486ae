"""What every strategy and teacher placement holds, sends and takes, per rank, in one table.

python -m benchmarks.zero: on-policy distillation of a 9M-parameter student by a 42M-parameter teacher, both random, on
two CPU processes of one thread each. --gpu: a 1.5B-shaped student and a 7B-shaped teacher, bf16, 151,936 tokens, 10
steps, one rank per visible GPU (NCCL). Every case is a launch of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import lightning as L
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import scaling
from distill import distributed, sharding

ROOT = Path(__file__).parents[1]
CASES = [
    ("ddp", "replicated", "auto"),
    ("zero1", "replicated", "auto"),
    ("zero2", "replicated", "auto"),
    ("zero2", "sharded", "auto"),
    ("zero3", "replicated", "model"),
    ("zero3", "replicated", "layers"),
    ("zero3", "sharded", "model"),
    ("zero3", "offloaded", "model"),
]


class Sent(TorchDispatchMode):
    """Counts the bytes that collectives of a ring send, up to the factor (ranks - 1)/ranks."""

    # An all-reduce is a reduce-scatter and an all-gather.
    WEIGHTS: ClassVar = {"allreduce_": 2, "allreduce_coalesced_": 2, "broadcast_": 1, "reduce_": 1}
    HALVES: ClassVar = {"_allgather_base_": 0, "_reduce_scatter_base_": 1, "allgather_into_tensor_coalesced_": 0}

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if func.namespace == "c10d" and name in self.WEIGHTS | self.HALVES:
            # The larger side: what all ranks together gather or reduce.
            whole = args[self.HALVES.get(name, 0)]
            size = sum(t.numel() * t.element_size() for t in ([whole] if isinstance(whole, torch.Tensor) else whole))
            self.bytes[name] += self.WEIGHTS.get(name, 1) * size
        elif func.namespace == "c10d":
            self.bytes[f"{name} (calls)"] += 1
        return func(*args, **(kwargs or {}))


class Held(L.Callback):
    """Writes what a rank sends in the second step, and holds after the last, to ``folder/rank.json``."""

    def __init__(self, folder: str) -> None:
        self.folder, self.sent = Path(folder), Sent()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: object) -> None:
        if trainer.global_step == 1 and not self.sent.bytes:
            self.sent.bytes["steps"] = 1
            self.sent.__enter__()
        elif trainer.global_step == 2 and self.sent.bytes.pop("steps", 0):
            self.sent.__exit__(None, None, None)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        models = {"student": pl_module.lm.model, "teacher": pl_module.teacher.lm.model}
        found = {name: sharding.held_bytes(model) for name, model in models.items()}
        if pl_module.device.type == "cuda":
            found["peak"] = torch.cuda.max_memory_allocated()
        else:
            status = Path("/proc/self/status").read_text()
            found["peak"] = 1024 * int(status.split("VmHWM:")[1].split()[0])
        found["sent"] = sum(size for name, size in self.sent.bytes.items() if "calls" not in name)
        (self.folder / f"{distributed.rank()}.json").write_text(json.dumps(found))


@dataclass(frozen=True)
class Scale:
    """Sizes of a comparison; models are (hidden, layers, heads, key-value heads, intermediate)."""

    student: tuple[int, int, int, int, int] = (256, 8, 8, 8, 1024)
    teacher: tuple[int, int, int, int, int] = (512, 10, 8, 8, 2048)
    vocabulary: int = 19
    batch: int = 32
    micro_batch: int = 4
    new_tokens: int = 16
    steps: int = 6
    words: tuple[str, ...] = ("trainer.accelerator=cpu",)


GPU = Scale(
    student=(1536, 28, 12, 2, 8960),
    teacher=(3584, 28, 28, 4, 18944),
    vocabulary=151_936,
    batch=16,
    new_tokens=256,
    steps=10,
    words=("trainer.accelerator=gpu", "trainer.precision=bf16-mixed", "teacher.dtype=bfloat16"),
)


def model(shape: tuple[int, int, int, int, int], scale: Scale) -> str:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    values = dict(zip(names, shape, strict=True)) | {"vocab_size": scale.vocabulary, "max_position_embeddings": 1024}
    return "{model_type:llama,tie_word_embeddings:true," + ",".join(f"{k}:{v}" for k, v in values.items()) + "}"


def tokenizer(vocabulary: int, folder: Path) -> Path:
    """The embedded tokenizer with as many tokens as asked for, so that the head is as large as a real one."""
    shutil.copytree(ROOT / "distill" / "assets" / "tokenizer", folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    known = content["model"]["vocab"]
    known.update({f"token-{number}": number for number in range(len(known), vocabulary)})
    path.write_text(json.dumps(content))
    return folder


def train(strategy: str, placement: str, gather: str, ranks: int, scale: Scale, folder: Path) -> dict[str, Any]:
    """Launches one run and returns what its slowest rank held, sent and took."""
    words_of = tokenizer(scale.vocabulary, folder / "tokenizer")
    words = [
        *scale.words,
        f"trainer.strategy={strategy}",
        f"trainer.max_steps={scale.steps}",
        f"trainer.micro_batch_size={scale.micro_batch}",
        f"teacher.placement={placement}",
        f"rollout.gather={gather}",
        f"rollout.max_new_tokens={scale.new_tokens}",
        f"data.batch_size={scale.batch * ranks // 2 if ranks > 1 else scale.batch}",
        "student.path=null",
        f"student.config={model(scale.student, scale)}",
        f"student.tokenizer={words_of}",
        "teacher.path=null",
        f"teacher.config={model(scale.teacher, scale)}",
        f"teacher.tokenizer={words_of}",
        "callbacks=none",
        f"+callbacks.extra={{held:{{_target_:benchmarks.zero.Held,folder:{folder}}}}}",
        "logger.progress=off",
        f"hydra.run.dir={folder / 'run'}",
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DISTILL_ALLOWED_TARGETS": "benchmarks.zero."}
    done = subprocess.run(
        [*command, "-m", "distill", "train", *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    held = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    # The first steps record DeepSpeed's traces and allocate; the second is slowed by counting.
    timed = [record for record in records if record["step"] > 2]
    found = {key: max(rank[key] for rank in held) for key in held[0]}
    return found | {key: median(record[f"time/{key}"] for record in timed) for key in ("step", "rollout")}


def expected(strategy: str, placement: str, gather: str, full: dict[str, float], scale: Scale) -> float:
    """What ``benchmarks.scaling`` says a rank sends; ``full``: bytes of the whole models."""
    width = 2 if scale is GPU else 4
    numbers = {name: size / width for name, size in full.items()}
    job = scaling.Job(
        **numbers,
        head=scale.vocabulary * scale.student[0],
        width=width,
        rows=scale.batch // 2,
        micro_rows=scale.micro_batch,
        prompt=8,
        new_tokens=scale.new_tokens,
    )
    shards = "replicated" if placement == "replicated" else "sharded"
    layers = "layers" if gather == "layers" else "model"
    return sum(scaling.volume(job, strategy, shards, layers, rollout=True).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    scale, ranks = (GPU, torch.cuda.device_count()) if options.gpu else (Scale(), 2)
    where = torch.cuda.get_device_name() if options.gpu else "CPU processes, gloo"
    print(f"{ranks} ranks, {where}, torch {torch.__version__}")
    print(
        "| strategy | teacher | rollout | student MB | teacher MB | sent | by formula | peak GB | s a step | rollout |"
    )
    print("|---|---|---|--:|--:|--:|--:|--:|--:|--:|")
    full = {"student": 0.0, "teacher": 0.0}
    for strategy, placement, gather in CASES:
        with tempfile.TemporaryDirectory() as folder:
            found = train(strategy, placement, gather, ranks, scale, Path(folder))
        # The first case holds both models whole.
        full = {name: full[name] or found[name] for name in full}
        formula = expected(strategy, placement, gather, full, scale)
        sizes = (found["student"], found["teacher"])
        cells = [f"{size / 1e6:.1f}" for size in sizes] + [f"{size / 1e6:.0f} MB" for size in (found["sent"], formula)]
        cells += [f"{found['peak'] / 1e9:.2f}", f"{found['step']:.2f}", f"{found['rollout']:.2f}"]
        print(f"| {' | '.join([strategy, placement, gather, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
