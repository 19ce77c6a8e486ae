"""What every model that trains or teaches offers, whatever it reads: text or images."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from distill.types import Head, MicroBatch, Signal


class Network(Protocol):
    """A model as hidden states and a head. Not an ``nn.Module``: whoever trains it registers :attr:`model`.

    A task whose targets are the places of a picture fits, too: states ``[N, H]`` of pixels, and the head over classes.
    """

    @property
    def model(self) -> Any: ...

    @property
    def head(self) -> Head: ...

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        """What the head is made of; under ZeRO-3 it has to be gathered where :attr:`head` is called."""
        ...

    @property
    def max_positions(self) -> int | None:
        """The longest input, None if there is no limit."""
        ...

    def hidden(self, *inputs: Any, **named: Any) -> Tensor:
        """``batch.inputs`` → the states that ``batch.select`` takes those of the targets from."""
        ...

    def signal(self, batch: MicroBatch) -> Signal:
        """The states that predict the batch's targets, ``[N, H]``, and the head."""
        ...

    def save_reader(self, folder: Any) -> None:
        """Writes what else it takes to read the model's inputs: a tokenizer, or the settings of an image processor."""
        ...
