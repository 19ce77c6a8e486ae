"""What ``distill mask`` reads: checkpoints and mask files that were made for the same weights, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.analysis.fingerprint import fingerprint
from distill.analysis.source import Folder, Shapes, match, refuse_not_finite
from distill.errors import UserError
from distill.maskfile import MaskFile


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of finite weights by the names of the mask to be made."""

    folder: Folder
    names: Mapping[str, str]
    fingerprint: str

    def tensor(self, name: str) -> Tensor:
        return self.folder.tensor(self.names[name])


@dataclass(frozen=True)
class Reference:
    """A mask file by the names of the mask to be made."""

    file: MaskFile
    names: Mapping[str, str]

    def mask(self, name: str) -> Tensor:
        return self.file.mask(self.names[name])

    def count(self, name: str) -> int:
        return self.file.counts[self.names[name]]


@dataclass(frozen=True)
class Inputs:
    """``shapes`` are the tensors the mask is to have, ``made_for`` the fingerprint of the weights it is for."""

    shapes: Shapes
    made_for: str
    source: Checkpoint | None
    trained: Checkpoint | None
    masks: tuple[Reference, ...]
    like: Reference | None


def opened(config: Mapping[str, Any], files: ExitStack) -> Inputs:
    """Opens every input of ``config``; ``files`` closes them.

    The mask takes its names from the source; a tensor tied to another is left out. Without a source they are those of
    the first of ``masks``.

    Raises:
        UserError: an input cannot be read, weights are not finite, a tensor of one input has no counterpart in another,
            or a mask was made for other weights.
    """
    like = None if config["like"] is None else MaskFile(Path(config["like"]), "like")
    masks = [MaskFile(Path(path), "masks") for path in config["masks"]]
    source = trained = None
    if config["source"] is not None:
        folder = files.enter_context(Folder(Path(config["source"]), "source"))
        if config["trained"] is not None:
            trained = _trained(files.enter_context(Folder(Path(config["trained"]), "trained")), folder)
        names = _names(folder, trained, like)
        source = Checkpoint(folder, dict(zip(names, names, strict=True)), _fingerprint(folder))
        shapes, made_for = {name: folder.shapes[name] for name in names}, source.fingerprint
    else:
        shapes, made_for = dict(masks[0].shapes), masks[0].provenance.source
    references = tuple(_reference(mask, shapes, made_for) for mask in masks)
    compared = None if like is None else _reference(like, shapes, made_for)
    return Inputs(shapes, made_for, source, trained, references, compared)


def _trained(folder: Folder, source: Folder) -> Checkpoint:
    found = match(source.shapes, folder.shapes, source.tied, folder.tied)
    if not (found.complete and found.pairs):
        allowed = f"a checkpoint with the tensors of {source.path}, no more and no less ({found})"
        raise UserError(folder.key, str(folder.path), allowed)
    return Checkpoint(folder, {before: after for after, before in found.pairs}, _fingerprint(folder))


def _names(source: Folder, trained: Checkpoint | None, like: MaskFile | None) -> list[str]:
    """Names of the source in its order; a tied copy counts where it has become a tensor of its own."""
    if trained is not None:
        wanted = set(trained.names)
    elif like is not None:
        wanted = set(like.fit(source.shapes, source.tied))
    else:
        wanted = source.shapes.keys() - source.tied.keys()
    if not any(math.prod(source.shapes[name]) for name in wanted):
        raise UserError(source.key, str(source.path), "a checkpoint with weights in it")
    return [name for name in source.shapes if name in wanted]


def _reference(mask: MaskFile, shapes: Shapes, made_for: str) -> Reference:
    mask.refuse_other_source(made_for, mask.key)
    return Reference(mask, mask.fit(shapes))


def _fingerprint(folder: Folder) -> str:
    return fingerprint((name, _finite(folder, name)) for name in folder.shapes)


def _finite(folder: Folder, name: str) -> Tensor:
    tensor = folder.tensor(name)
    refuse_not_finite(tensor, folder, name)
    return tensor
