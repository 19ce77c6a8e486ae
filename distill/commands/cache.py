"""``distill cache [words of distill train] [cache.KEY=VALUE]…``: what the teacher says about the training data."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from distill import __version__, data, distributed, strategies, training
from distill.analysis.fingerprint import of_model
from distill.cache import HEAD, manifest, parquet, shard
from distill.cache.manifest import Manifest, Provenance
from distill.cache.suit import suited
from distill.commands.countdown import countdown
from distill.data.base import Dataset, digest
from distill.errors import UserError
from distill.models import CausalLM, tokenizers
from distill.models.head import LogitHead
from distill.quiet import quiet_libraries
from distill.rollouts.dataset import DatasetRollout
from distill.rollouts.seeds import row_seed, uniforms
from distill.teachers.frozen import FrozenTeacher
from distill.teachers.recording import Recording
from distill.types import Row

ELSEWHERE = ("path", "eval_path", "eval_size", "batch_size", "limit", "fraction")
"""Keys of the data that the fingerprint of its rows and their numbers cover, or that no row depends on."""


@dataclass(frozen=True)
class Job:
    """The samples of ``dataset`` in files of ``rows``, of which each rank writes its share, and removes none."""

    folder: Path
    dataset: Dataset
    made: Provenance

    @property
    def rows(self) -> int:
        return self.made.shard_rows

    @property
    def shards(self) -> int:
        return -(-len(self.dataset) // self.rows)

    def path(self, number: int) -> Path:
        return self.folder / shard.name(number)

    def span(self, number: int) -> range:
        return range(number * self.rows, min((number + 1) * self.rows, len(self.dataset)))

    def open(self) -> list[int]:
        """Numbers of the files that this rank has still to write."""
        mine = range(distributed.rank(), self.shards, distributed.world_size())
        return [number for number in mine if not shard.sealed(self.path(number), self.made)]


def run(config: dict[str, Any], run_dir: Path) -> int:
    """Writes what is missing of the cache, and its manifest when nothing is. Ranks do not wait for each other: whoever
    writes the last file completes the cache.

    Raises:
        UserError: there is another cache in the folder, or a model or the data cannot be used.
        RunError: the teacher's logits are not finite.
    """
    quiet_libraries()
    strategies.choose_accelerator(config["trainer"])
    student, teacher = training.build_models(config)
    assert isinstance(teacher, FrozenTeacher), "configurations with another are refused"
    # Other tasks are refused.
    lm, dataset = cast(CausalLM, student), cast(Dataset, training.build_data(config, student, teacher)[0])
    options, folder = config["cache"], Path(config["cache"]["out"])
    made = provenance(config, lm, teacher, dataset)
    suited(made, config["objective"])
    folder.mkdir(parents=True, exist_ok=True)
    if not _intact(folder, _agreed(folder, made)):
        if made.states and distributed.rank() == 0:
            _save_head(folder / HEAD, teacher.lm, made)
        job = Job(folder, dataset, made)
        device = _device(config["trainer"])
        recording = Recording(
            teacher.place(device), device, lm.pad_id, options["batch_size"], made.temperature, made.k, made.draws
        )
        _write(job, recording)
        _complete(job)
    found = manifest.read(folder, "cache.out")
    if options["parquet"] and found.complete:
        parquet.export(folder, found)
    _tell(folder, found)
    return 0


def provenance(config: Mapping[str, Any], lm: CausalLM, teacher: FrozenTeacher, dataset: Dataset) -> Provenance:
    """What the cache of this configuration is made from."""
    options, spec, objective = config["cache"], config["teacher"], config["objective"]
    k = 0 if options["states"] else min(options["k"] or objective["k"], lm.vocab_size)
    return Provenance(
        model=spec["path"] or json.dumps(spec["config"], sort_keys=True),
        revision=spec["revision"],
        prompt=spec["prompt"],
        weights=of_model(teacher.lm.model),
        dtype=spec["dtype"],
        tokenizer=tokenizers.fingerprint(lm.tokenizer),
        template=tokenizers.template_hash(lm.tokenizer),
        vocab_size=lm.vocab_size,
        data=dataset.fingerprint(),
        rows=len(dataset),
        encoding=digest(_encoding(config["data"])),
        part=dataset.describe().get("part", f"all {len(dataset)} rows"),
        ids=digest({"ids": list(data.ids(dataset))}),
        # States are kept from before the logits are divided.
        temperature=1.0 if options["states"] else objective["temperature"],
        k=k,
        draws=options["draws"],
        seed=config["seed"] if options["draws"] else 0,
        states=options["states"],
        stored=options["stored"],
        shard_rows=options["shard_rows"],
    )


def _agreed(folder: Path, made: Provenance) -> Manifest:
    """What the folder says it holds; a new manifest where it says nothing."""
    if not (folder / manifest.NAME).exists():
        # What is hidden are drafts of a process that was killed, or of one that writes at this moment.
        others = [path for path in folder.iterdir() if not path.name.startswith(".")]
        if others and not (folder / manifest.NAME).exists():
            raise UserError("cache.out", str(folder), "a new or empty folder, or one with a cache to go on with")
        manifest.write(folder, Manifest(__version__, made, {}))
    found = manifest.read(folder, "cache.out")
    if difference := found.provenance.difference(made):
        raise UserError("cache.out", str(folder), f"another folder: the cache in this one differs ({difference})")
    return found


def _intact(folder: Path, found: Manifest) -> bool:
    """Whether nothing is left to do. A complete cache that was damaged is incomplete again.

    Bad files stay until the rank whose they are writes them anew: it may have done so since this one looked.
    """
    if not found.complete:
        return False
    made = found.provenance
    whole = all(
        shard.intact(folder / name, expected) and shard.made_for(folder / name) == made.digest()
        for name, expected in found.shards.items()
    )
    if whole and found.head == _head_of(folder, made):
        return True
    manifest.write(folder, Manifest(found.version, made, {}))
    return False


def _encoding(section: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the data that decide, beside its rows, which tokens are made of them."""
    kept = {key: value for key, value in section.items() if key not in ELSEWHERE}
    return {key: _encoding(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _head_of(folder: Path, made: Provenance) -> str | None:
    return shard.sha256(folder / HEAD) if shard.sealed(folder / HEAD, made) else None


def _write(job: Job, recording: Recording) -> None:
    made, mine = job.made, job.open()
    with countdown("cache", sum(len(job.span(number)) for number in mine) or 1) as advance:
        for number in mine:
            samples = [job.dataset[index] for index in job.span(number)]
            rows = DatasetRollout()(samples, [0] * len(samples), 0)
            found = recording.entries(rows, [_uniforms(made.seed, row) for row in rows], advance)
            shard.save(job.path(number), found, made)


def _uniforms(seed: int, row: Row) -> torch.Tensor:
    """One number in [0, 1) per target, whatever else is cached beside the row."""
    targets = int(row.target_mask[1:].sum())
    seeds = np.full(targets, row_seed(seed, 0, row.sample_id, 0), dtype=np.uint64)
    return torch.from_numpy(uniforms(seeds, np.arange(targets, dtype=np.uint64)))


def _save_head(path: Path, lm: CausalLM, made: Provenance) -> None:
    head = lm.head
    if not isinstance(head, LogitHead) or not isinstance(head.module, torch.nn.Linear):
        raise UserError("cache.states", True, "false for a teacher without a separate output embedding")
    weights = {name: value[: lm.vocab_size].contiguous() for name, value in head.module.state_dict().items()}
    behind = {"scale": torch.tensor(head.scale), "cap": torch.tensor(head.cap or 0.0)}
    shard.write(path, weights | behind, made)


def _complete(job: Job) -> None:
    made, paths = job.made, [job.path(number) for number in range(job.shards)]
    needed = [*paths, *([job.folder / HEAD] if made.states else [])]
    # First what costs nothing: while others write, most is not there.
    if all(path.exists() for path in needed) and all(shard.sealed(path, made) for path in needed):
        found = {path.name: shard.describe(path) for path in paths}
        manifest.write(job.folder, Manifest(__version__, made, found, _head_of(job.folder, made)))
        for draft in manifest.drafts(job.folder, {manifest.NAME, HEAD, *found}):
            # Of a process that was killed: nobody has anything left to write.
            draft.unlink(missing_ok=True)


def _device(trainer: Mapping[str, Any]) -> torch.device:
    if not strategies.on_gpu(dict(trainer)):
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _tell(folder: Path, found: Manifest) -> None:
    if found.complete:
        each = found.bytes / max(found.positions, 1)
        print(f"{found.provenance.rows:,} samples, {found.positions:,} tokens, {found.bytes / 1e6:,.1f} MB", end=" ")
        print(f"({each:,.1f} bytes per token): train with teacher=cached teacher.cache={folder}")
    else:
        print(f"rank {distributed.rank()} has written its share of {folder}; others are still to come")
