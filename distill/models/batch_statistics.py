"""Models that normalise by the mean and variance of the images in one forward pass, and how many of these they need.

``B`` images.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.models.causal_lm import evaluating


def layers(model: nn.Module) -> list[nn.Module]:
    """The layers that do; not those which :func:`freeze` has changed."""
    found = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return [module for module in found if not isinstance(module, _Frozen)]


def freeze(model: nn.Module) -> None:
    """Makes these layers normalise by the running statistics that they have, in training too, and leave them.

    Their scale and shift go on training. Nothing depends on the micro-batch any more.
    """
    for module in layers(model):
        # The class alone: names of weights, and what is saved, stay what they are.
        module.__class__ = type(type(module).__name__, (_Frozen, type(module)), {})
        module.eval()


class _Frozen(nn.Module):
    """Before a class of batch normalisation: always in evaluation mode."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


def fewest(student: Any) -> int:
    """Images that a training pass needs: 2 where such a layer sees one number per channel and image, whose variance
    alone does not exist. Looked up in a pass that changes nothing."""
    sizes = list[int]()

    def see(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        sizes.append(arguments[0][0, 0].numel())

    hooks = [layer.register_forward_pre_hook(see) for layer in layers(student.model)]
    if not hooks:
        return 1
    try:
        with evaluating(student.model):
            student.hidden(torch.zeros(1, *student.shape))
    finally:
        for hook in hooks:
            hook.remove()
    return 2 if 1 in sizes else 1


def check(student: Any, rows: int, micro_batch_size: int | None) -> None:
    """Refuses micro-batches that are too small, the last one of a step included; ``rows`` are those of one rank.

    Raises:
        UserError: named ``trainer.micro_batch_size``, or ``data.batch_size`` where a step is one micro-batch.
    """
    size = min(micro_batch_size or rows, rows)
    least = rows % size or size
    if least > 1 or least >= fewest(student):
        return
    why = "for a model that normalises by batch statistics"
    if size == rows:
        raise UserError("data.batch_size", rows, f"at least 2 images for each process {why}")
    left = f"{rows} images of a step leave one alone" if size > 1 else f"{rows} images of a step"
    allowed = f"null, or a number above 1 that leaves no micro-batch of one image {why} ({left})"
    raise UserError("trainer.micro_batch_size", micro_batch_size, allowed)
