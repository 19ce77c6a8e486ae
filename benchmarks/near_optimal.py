"""A near-optimal teacher for recipe=kd_variance: a perceptron on the digits, trained on all of them at once by L-BFGS.

Usage: python -m benchmarks.near_optimal [FOLDER] [l2=1e-3] [hidden=32,32] [activation=relu] [bias=false] [seed=0]
(default: runs/near_optimal)

Writes a model folder (float64) for `teacher.path`, with the scale and the classes of `recipe=kd_variance`. With hidden
layers it is a stationary point, not the optimum.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.data import images
from distill.models.build_images import Pictures, build
from distill.models.export import save
from distill.models.image_classifier import Scale
from distill.quiet import quiet_libraries

SOURCE = {"source": "digits", "path": None, "image_size": None, "channels": None, "limit": None, "fraction": 1.0}
GRADIENT, ITERATIONS = 1e-10, 5000


def digits(whole: bool = False) -> tuple[Tensor, Tensor]:
    """The training part of `data=digits`, or the ``whole``: pixels ``[n, 1, 8, 8]`` (float64, in [0, 1]) and labels
    ``[n]``."""
    train, held_out = images.build(SOURCE)
    parts = (train, held_out) if whole else (train,)
    samples = [part[number] for part in parts for number in range(len(part))]
    return torch.stack([sample.pixels for sample in samples]).double(), torch.tensor([s.label for s in samples])


def minimise(parameters: list[Tensor], objective: Callable[[], Tensor]) -> float:
    """Walks to where the gradient is about :data:`GRADIENT` long, in place; returns how long it is."""
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=ITERATIONS,
        tolerance_grad=GRADIENT,
        tolerance_change=0.0,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(sum(g.square().sum() for g in torch.autograd.grad(objective(), parameters)) ** 0.5)


def objective_of(model: nn.Module, pixels: Tensor, labels: Tensor, l2: float) -> Tensor:
    """Mean cross-entropy, and the ℓ2 term of the matrices, as SGD's weight decay has it in training."""
    matrices = [parameter.square().sum() for parameter in model.parameters() if parameter.ndim >= 2]
    return functional.cross_entropy(model(pixel_values=pixels).logits, labels) + l2 / 2 * torch.stack(matrices).sum()


def main() -> None:
    folder, *words = sys.argv[1:] or ["runs/near_optimal"]
    options: dict[str, str] = {"l2": "1e-3", "hidden": "", "activation": "relu", "bias": "false", "seed": "0"}
    options |= dict(word.split("=", 1) for word in words)
    hidden = [int(size) for size in options["hidden"].split(",") if size]
    config: dict[str, Any] = {"model_type": "mlp", "hidden_sizes": hidden, "activation": options["activation"]}
    config["bias"] = options["bias"] == "true"
    pictures = Pictures((1, 8, 8), tuple(str(name) for name in range(10)), Scale((0.0,), (1.0,)))
    spec = {"config": config, "dtype": "float64"}
    network = build(spec, seed=int(options["seed"]), key="student", pictures=pictures)
    pixels, labels = digits()
    left = minimise(
        list(network.model.parameters()), lambda: objective_of(network.model, pixels, labels, float(options["l2"]))
    )
    loss = float(objective_of(network.model, pixels, labels, float(options["l2"])).detach())
    quiet_libraries()
    save(network, Path(folder))
    print(f"{folder}: objective {loss:.6f}, gradient {left:.1e} long")


if __name__ == "__main__":
    main()
