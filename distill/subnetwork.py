"""The mask of a run that trains a subnetwork alone (arXiv 2606.13657): read, and checked against the student."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.analysis.fingerprint import of_model
from distill.analysis.live import live_weights
from distill.errors import UserError
from distill.maskfile import MaskFile
from distill.models.base import Network

KEY = "callbacks.update_mask.path"


@dataclass(frozen=True)
class Subnetwork:
    """A mask file, and the names of the student's tensors in it."""

    file: MaskFile
    names: dict[str, str]

    @property
    def density(self) -> float:
        return self.file.density

    @property
    def checksum(self) -> str:
        return str(self.file.checksum)

    def mask(self, name: str) -> Tensor:
        """Bool, of the shape of the student's tensor ``name``: True where it trains."""
        return self.file.mask(self.names[name])


def load(options: dict[str, Any] | None, lm: Network) -> Subnetwork | None:
    """The mask of the section ``callbacks.update_mask``, every bit of it read once; ``lm`` is the student as θ₀.

    Raises:
        UserError: named :data:`KEY`; the file is missing or damaged, was made for other weights or tensors, or selects
            nothing.
    """
    if options is None:
        return None
    file = MaskFile(Path(options["path"]), KEY)
    weights, tied = live_weights(lm.model)
    names = file.fit({name: tuple(weight.read().shape) for name, weight in weights.items()}, tied)
    file.refuse_other_source(of_model(lm.model), KEY)
    if not any(int(file.mask(name).sum()) for name in file.names):
        raise UserError(KEY, str(file.path), "a mask that selects a coordinate to train")
    return Subnetwork(file, names)
