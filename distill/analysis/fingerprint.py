"""What identifies a model's weights: one SHA-256 of their content, however and wherever they are stored.

Equal for one file or shards, fp32 or bf16 storage of bf16 values, a head stored beside the embedding it is tied to or
not, names with or without the wrappers' prefixes, and for a live model and the folder it was saved to. Another value of
any coordinate, by one bf16 step, gives another fingerprint; a change too small to show in bf16 does not.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from distill.analysis.live import live_weights
from distill.analysis.naming import place
from distill.analysis.source import BUFFER, Folder, stem

_PIECE = 1 << 22


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """64 hexadecimal digits: SHA-256 of one line ``NAME SHAPE DIGEST`` per tensor, sorted, each ended by a newline.

    NAME is without ``analysis.source.PREFIXES`` unless two tensors would share it, SHAPE is like ``3x4`` (``-`` for a
    scalar), DIGEST the SHA-256 of the values rounded to bfloat16, row by row, little-endian. Integers and the buffers
    that ``analysis.source.Folder`` skips are left out, and so is an output head whose values are those of an embedding.
    Tensors are looked at one after the other.
    """
    found = {name: _content(tensor) for name, tensor in tensors if tensor.is_floating_point() and _is_weight(name)}
    tables = {content for name, content in found.items() if place(name).group == "embedding"}
    kept = {name: content for name, content in found.items() if place(name).group != "lm_head" or content not in tables}
    shared = Counter(stem(name) for name in kept)
    lines = sorted(f"{stem(name) if shared[stem(name)] == 1 else name} {kept[name]}\n" for name in kept)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def of_folder(folder: Folder) -> str:
    """The fingerprint of a checkpoint."""
    return fingerprint((name, folder.tensor(name)) for name in folder.shapes)


def of_model(model: nn.Module) -> str:
    """The fingerprint of a live model, adapters merged; its parameters must be whole, not in shards."""
    return fingerprint((name, weight.read()) for name, weight in live_weights(model)[0].items())


def _is_weight(name: str) -> bool:
    return BUFFER.search(name) is None


def _content(tensor: Tensor) -> str:
    digest = hashlib.sha256()
    for piece in torch.split(tensor.detach().reshape(-1), _PIECE):
        digest.update(piece.to(torch.bfloat16).view(torch.int16).cpu().numpy().data)
    return f"{'x'.join(map(str, tensor.shape)) or '-'} {digest.hexdigest()}"
