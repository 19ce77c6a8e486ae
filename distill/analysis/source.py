"""θ₀ and other checkpoints as folders of memory-mapped safetensors, and how two sets of names are matched."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distill.analysis.naming import place
from distill.errors import UserError

INDEX = "model.safetensors.index.json"
PREFIXES = ("base_model.model.", "language_model.", "transformer.", "model.")
BUFFER = re.compile(r"(\.attn\.(masked_)?bias|rotary_emb\.inv_freq|\.position_ids|\.running_(mean|var))$")
"""Names of what checkpoints keep beside their weights: buffers of old ones, running statistics of normalisation."""
_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}

Shapes = Mapping[str, tuple[int, ...]]


class Folder:
    """The tensors of a Hugging Face safetensors folder (one file, or shards with an index), or of a single file.

    Use as a context manager. Nothing is read before :meth:`tensor`, which returns a view of the mapped file.
    ``skipped`` lists what is not a weight: integer tensors, attention-mask and rotary buffers of old checkpoints.
    ``tied`` maps each output head that is a bit-identical copy of an embedding to that embedding.

    Raises:
        UserError: the folder is missing, holds no safetensors, lacks a shard of its index, has a tensor in two files,
            or a file is damaged.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self._files = ExitStack()
        self._readers: dict[str, Any] = {}
        try:
            for file in weight_files(path, key):
                self._open(file)
            self._check_index()
        except BaseException:
            self._files.close()
            raise
        meta = {name: reader.get_slice(name) for name, reader in self._readers.items()}
        weights = {name for name, part in meta.items() if part.get_dtype() in _FLOATS and not BUFFER.search(name)}
        self.skipped = sorted(meta.keys() - weights)
        self.shapes: Shapes = {name: tuple(meta[name].get_shape()) for name in sorted(weights, key=natural)}
        self.tied = self._tied()

    def _open(self, file: Path) -> None:
        try:
            reader = self._files.enter_context(safe_open(file, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise UserError(self.key, str(file), f"readable safetensors ({error})") from error
        names = reader.keys()
        if twice := next((name for name in names if name in self._readers), None):
            raise UserError(
                self.key, str(self.path), f"a checkpoint with every tensor once ({twice!r} is in two files)"
            )
        self._readers |= dict.fromkeys(names, reader)

    def _check_index(self) -> None:
        index = self.path / INDEX
        promised = _weight_map(index, self.key) if index.is_file() else {}
        absent = [name for name in promised if name not in self._readers]
        if absent:
            raise UserError(self.key, str(self.path), f"complete (its index also names {absent[0]})")

    def tensor(self, name: str) -> Tensor:
        value: Tensor = self._readers[name].get_tensor(name)
        return value

    def dtype(self, name: str) -> str:
        """The precision a tensor is stored in, as torch calls it."""
        # A slice reads nothing but the header.
        found = self._readers[name].get_slice(name)
        return str(found[...].dtype if not found.get_shape() else found[:0].dtype).removeprefix("torch.")

    def _tied(self) -> dict[str, str]:
        config = self.path / "config.json"
        if config.is_file() and _read_json(config, self.key).get("tie_word_embeddings") is False:
            return {}
        heads = [name for name in self.shapes if place(name).group == "lm_head"]
        embeddings = [name for name in self.shapes if place(name).group == "embedding"]
        return {head: table for head in heads for table in embeddings if self._identical(head, table)}

    def _identical(self, one: str, other: str) -> bool:
        if self.shapes[one] != self.shapes[other]:
            return False
        first, second = self.tensor(one), self.tensor(other)
        return first.dtype == second.dtype and torch.equal(first, second)

    def __enter__(self) -> Folder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()


def weight_files(path: Path, key: str) -> list[Path]:
    """The safetensors files of a checkpoint; ``key`` names the option in errors."""
    if path.is_file() and path.suffix == ".safetensors":
        return [path]
    if not path.is_dir():
        raise UserError(key, str(path), "an existing folder with safetensors, or one such file")
    index, single = path / INDEX, path / "model.safetensors"
    if index.is_file():
        names = set(_weight_map(index, key).values())
        if single.is_file() and single.name not in names:
            # transformers would read the single file.
            allowed = f"one checkpoint, not two ({single.name}, and the shards of {INDEX}); or name the file itself"
            raise UserError(key, str(path), allowed)
        missing = [name for name in sorted(names) if not (path / name).is_file()]
        if missing:
            raise UserError(key, str(path), f"complete (its index also names {', '.join(missing)})")
        return [path / name for name in sorted(names)]
    found = [single] if single.is_file() else sorted(path.glob("*.safetensors"))
    files = [file for file in found if not file.name.startswith("adapter")]
    if not files:
        raise UserError(key, str(path), "a folder with full weights as safetensors (merge adapters, convert pickles)")
    return files


def refuse_not_finite(tensor: Tensor, folder: Folder, name: str) -> None:
    """Raises a UserError unless every number of ``tensor`` is finite in bfloat16, too."""
    # Numbers of 8 bits have no isfinite.
    wide = tensor.float() if tensor.itemsize == 1 else tensor
    held = "NaN or infinity" if not bool(wide.isfinite().all()) else "numbers too large for bfloat16"
    if not bool(wide.bfloat16().isfinite().all()):
        raise UserError(folder.key, str(folder.path), f"a checkpoint of finite weights ({name!r} holds {held})")


def _weight_map(index: Path, key: str) -> dict[str, str]:
    """File name by tensor name."""
    found = _read_json(index, key).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise UserError(key, str(index), "an index whose `weight_map` names the file of every tensor")
    if beyond := next((file for file in found.values() if Path(file).name != file), None):
        raise UserError(key, str(index), f"an index of files beside it, not of {beyond!r}")
    return found


def _read_json(path: Path, key: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(key, str(path), f"readable JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(key, str(path), "a JSON object")
    return content


@dataclass(frozen=True)
class Match:
    """Which tensors correspond. ``pairs`` are (trained name, source name); nothing is dropped without being listed.

    ``missing`` are source names without a counterpart, ``extra`` trained names without one, ``misshaped`` pairs whose
    shapes differ, ``tied`` copies of an embedding that are counted through the embedding.
    """

    pairs: tuple[tuple[str, str], ...]
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return not (self.missing or self.extra or self.misshaped)

    def __str__(self) -> str:
        parts = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for kind, names in (("missing", self.missing), ("extra", self.extra), ("mis-shaped", self.misshaped))
            if names
        ]
        return "; ".join(parts) or "all tensors match"


def match(source: Shapes, trained: Shapes, source_tied: Iterable[str] = (), trained_tied: Iterable[str] = ()) -> Match:
    """Pairs names exactly, then without the wrappers' PREFIXES where that is unambiguous.

    A tied copy is left out where the other side has no such tensor or has it tied as well, so that it counts once; a
    copy that became independent on one side counts as the tensor it is.
    """
    found = _pair(source, trained)
    backwards = {before: after for after, before in found.items()}
    tied_source = {name for name in source_tied if name not in backwards or backwards[name] in set(trained_tied)}
    tied_trained = {name for name in trained_tied if name not in found or found[name] in set(source_tied)}
    found = {after: before for after, before in found.items() if after not in tied_trained}
    misshaped = {after for after, before in found.items() if source[before] != trained[after]}
    return Match(
        pairs=tuple((after, before) for after, before in found.items() if after not in misshaped),
        missing=tuple(name for name in source if name not in backwards and name not in tied_source),
        extra=tuple(name for name in trained if name not in found and name not in tied_trained),
        misshaped=tuple(
            f"{after} {list(trained[after])} against {list(source[found[after]])}" for after in sorted(misshaped)
        ),
        tied=tuple(sorted(tied_source | tied_trained)),
    )


def _pair(source: Shapes, trained: Shapes) -> dict[str, str]:
    exact = {name: name for name in trained if name in source}
    left = _by_stem(name for name in source if name not in exact)
    right = _by_stem(name for name in trained if name not in exact)
    loose = {
        names[0]: left[core][0] for core, names in right.items() if len(names) == 1 and len(left.get(core, [])) == 1
    }
    return {name: (exact | loose)[name] for name in trained if name in exact or name in loose}


def _by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(stem(name), []).append(name)
    return stems


def stem(name: str) -> str:
    """A name without any of PREFIXES, however they are stacked."""
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name[len(prefix) :]
    return name


def natural(name: str) -> list[Any]:
    """Sort key under which layer 2 comes before layer 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
