"""How much noise a teacher takes off SGD, by λ: near-optimal and SGD teachers, biased and unbiased.

Usage: python -m benchmarks.kd_variance [OUT] [seeds=5] [epochs=60] [training=0]   (default: runs/kd_variance)

Writes OUT/table.md, table.json and table.png. The digits of scikit-learn, softmax regression without bias, ℓ2 1e-3,
rate 0.5, batches of 10, from 0, all in float64. All λ of a seed see the same batches. The images of a batch are drawn
independently from all 1797, as the theory has it; `training=1` takes the training part of `data=digits`, each image
once an epoch, as `distill train` does (`tests/integration/test_kd_variance.py` has it take the same steps).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.near_optimal import digits, minimise
from distill.data.sampler import indices
from distill.figures import canvas
from distill.losses.reduction import corrected, predicted_weight
from distill.report.spread import spread

RATE, L2, BATCH, CLASSES = 0.5, 1e-3, 10, 10
WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SHOWN = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
AVERAGED = 20
"""Epochs at the end over which the excess loss is averaged, every :data:`LOOK` steps."""
LOOK = 37
"""Steps: at another place of each epoch. At the ends of epochs much of the noise has cancelled."""
ROWS = (
    ("near-optimal (L-BFGS)", 0, False),
    ("SGD 60 epochs, biased", 1, False),
    ("same, unbiased", 1, True),
    ("SGD 2 epochs, biased", 2, False),
    ("same, unbiased", 2, True),
)
"""Name, number of the teacher, whether ∇f(θ) is added back."""
COLOURS = ("#3a8f5c", "#2f66c0", "#d06a1e")
"""Of the teachers."""
OTHER_ORDER = 1000
"""Added to the seed of a teacher trained by SGD."""


@dataclass(frozen=True)
class Problem:
    """Pixels ``x`` ``[n, F]``, one-hot ``y`` ``[n, V]``; whether each image comes ``once`` in an epoch. Weights are
    ``[…, V, F]``."""

    x: Tensor
    y: Tensor
    once: bool

    def batches(self, seed: int, steps: int) -> list[list[int]]:
        """Numbers of the images of each step."""
        if self.once:
            return [indices(len(self.x), seed, step * BATCH, BATCH) for step in range(steps)]
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, len(self.x), (steps, BATCH), generator=generator).tolist()  # type: ignore[no-any-return]

    def value(self, weights: Tensor) -> Tensor:
        """f ``[…]`` on all data."""
        ce = -(self.y * (self.x @ weights.mT).log_softmax(-1)).sum(-1).mean(-1)
        return ce + L2 / 2 * weights.square().sum((-2, -1))

    def gradient(self, weights: Tensor, rows: list[int] | None = None) -> Tensor:
        """∇f_ξ, or ∇f without ``rows``: ``[…, V, F]``."""
        x, y = (self.x, self.y) if rows is None else (self.x[rows], self.y[rows])
        errors = (x @ weights.mT).softmax(-1) - y
        return errors.mT @ x / len(x) + L2 * weights

    def each(self, weights: Tensor) -> Tensor:
        """The gradient of each sample ``[n, V, F]``."""
        errors = (self.x @ weights.mT).softmax(-1) - self.y
        return errors[:, :, None] * self.x[:, None] + L2 * weights


def load(training: bool) -> Problem:
    pixels, labels = digits(whole=not training)
    return Problem(pixels.flatten(1), functional.one_hot(labels, CLASSES).to(pixels), training)


def optimum(problem: Problem) -> Tensor:
    weights = torch.zeros(CLASSES, problem.x.shape[1], dtype=torch.float64, requires_grad=True)
    left = minimise([weights], lambda: problem.value(weights))
    assert left < 1e-6, f"L-BFGS stopped where the gradient is {left:.1e} long"
    return weights.detach()


def walk(
    problem: Problem, seed: int, epochs: int, teachers: Tensor, of: list[int], weights: list[float], add: list[bool]
) -> tuple[Tensor, Tensor]:
    """Runs side by side, from 0: that of number r has the teacher ``of[r]``, λ ``weights[r]``, and ∇f(θ) if ``add[r]``.

    Returns the last weights ``[R, V, F]`` and f ``[R]``, averaged over the last :data:`AVERAGED` epochs.
    """
    count = len(problem.x)
    x = torch.zeros(len(of), CLASSES, problem.x.shape[1], dtype=torch.float64)
    share, kept = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (weights, [float(a) for a in add]))
    means = problem.gradient(teachers)[of] * kept
    found = []
    steps = epochs * count // BATCH
    for step, rows in enumerate(problem.batches(seed, steps)):
        x = x - RATE * corrected(problem.gradient(x, rows), problem.gradient(teachers, rows)[of], share, means)
        if step >= steps - AVERAGED * count // BATCH and step % LOOK == 0:
            found.append(problem.value(x))
    return x, torch.stack(found).mean(0)


def by_sgd(problem: Problem, seed: int, epochs: int) -> Tensor:
    nobody = torch.zeros(1, CLASSES, problem.x.shape[1], dtype=torch.float64)
    return walk(problem, seed, epochs, nobody, [0], [0.0], [False])[0][0]


def measure(problem: Problem, best: Tensor, seed: int, epochs: int) -> tuple[list[list[float]], list[float]]:
    """Excess by row and λ, relative to SGD without a teacher; and the λ* that the paper predicts for each teacher."""
    taught = [by_sgd(problem, seed + OTHER_ORDER, number) for number in (epochs, 2)]
    teachers = torch.stack([best, *taught])
    runs = [(teacher, weight, add) for (_, teacher, add), weight in product(ROWS, WEIGHTS)]
    of, weights, add = map(list, zip(*runs, (0, 0.0, False), strict=True))
    excess = walk(problem, seed, epochs, teachers, of, weights, add)[1] - problem.value(best)
    relative = (excess[:-1] / excess[-1]).reshape(len(ROWS), len(WEIGHTS))
    return relative.tolist(), [predicted(problem, best, teacher) for teacher in teachers]


def predicted(problem: Problem, best: Tensor, teacher: Tensor) -> float:
    """The paper's λ*, with μ the ℓ2 term's, the only curvature that is known to be everywhere."""
    own, theirs, bias = problem.each(best), problem.each(teacher), problem.gradient(teacher)
    noise = theirs - bias
    product = float((own * noise).sum((1, 2)).mean()) / BATCH
    square = float(noise.square().sum((1, 2)).mean()) / BATCH + float(bias.square().sum())
    return predicted_weight(RATE, L2, product, square, float(bias.square().sum()))


def table(values: Tensor, weights: Tensor) -> list[str]:
    """``values`` ``[S, rows, λ]`` of ``S`` seeds and the predicted λ* ``[S, 3]`` as lines of Markdown."""
    lines = [f"| teacher | {' | '.join(f'λ = {w}' for w in SHOWN)} | λ* |", f"|---|{'--:|' * (len(SHOWN) + 1)}"]
    lines.append(f"| (1 - λ)² | {' | '.join(f'{(1 - w) ** 2:.3f}' for w in SHOWN)} | |")
    for number, (name, teacher, add) in enumerate(ROWS):
        cells = [_spread(values[:, number, WEIGHTS.index(weight)].tolist()) for weight in SHOWN]
        best = "" if add else f"{float(weights[:, teacher].mean()):.3f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {best} |")
    return lines


def _spread(values: list[float]) -> str:
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def said(values: Tensor) -> list[str]:
    """What the numbers say, in sentences."""
    mean = values.mean(0)
    off = [abs(float(mean[0, i]) / (1 - w) ** 2 - 1) for i, w in enumerate(WEIGHTS) if w < 1]
    lines = [f"Near-optimal teacher: at most {max(off):.1%} from (1 - λ)² up to λ = 0.9."]
    for number in (1, 3):
        least = int(mean[number].argmin())
        name = ROWS[number][0]
        lines.append(f"{name}: least at λ = {WEIGHTS[least]} ({float(mean[number, least]):.2f}), at λ = 1 "
                     f"{float(mean[number, -1]):.2f}; unbiased {float(mean[number + 1, -1]):.2f}.")  # fmt: skip
    return [*lines, "", *verdicts(values)]


def verdicts(values: Tensor) -> list[str]:
    """Where the 95 % interval over seeds, all λ of which have the same batches, leaves SGD without a teacher out."""
    lines = ["| teacher | better than none at λ = | not told apart | worse |", "|---|---|---|---|"]
    for number, (name, _, add) in enumerate(ROWS):
        sides: dict[str, list[str]] = {"better": [], "neither": [], "worse": []}
        for position, weight in enumerate(WEIGHTS):
            found = spread(values[:, number, position].tolist())
            low, high = (None, None) if found is None else (found.low, found.high)
            told = low is not None and high is not None and not low <= 1 <= high
            side = ("better" if found.mean < 1 else "worse") if found is not None and told else "neither"
            sides[side].append(str(weight))
        shown = f"{ROWS[number - 1][0].removesuffix(', biased')}, unbiased" if add else name
        lines.append(f"| {shown} | {' | '.join(', '.join(side) or '–' for side in sides.values())} |")
    return lines


def draw(values: Tensor, file: Path) -> None:
    figure = canvas.sheet(7, 4.2)
    axes = figure.subplots()
    grid = [step / 100 for step in range(98)]
    axes.plot(grid, [(1 - at) ** 2 for at in grid], color="0.6", linestyle=":", label="(1 - λ)²")
    for number, (name, teacher, add) in enumerate(ROWS):
        color = COLOURS[teacher]
        label = f"{ROWS[number - 1][0].removesuffix(', biased')}, unbiased" if add else name
        mean, least, most = (part(values[:, number]) for part in (_mean, _least, _most))
        axes.plot([0.0, *WEIGHTS], [1.0, *mean], color=color, linestyle="--" if add else "-", label=label)
        axes.fill_between(WEIGHTS, least, most, color=color, alpha=0.2, linewidth=0)
    axes.axhline(1, color="0.8", linewidth=0.8, zorder=0)
    axes.set(xlabel="λ", ylabel="excess loss, SGD = 1", yscale="log", ylim=(5e-3, 12))
    axes.legend(fontsize=8, frameon=False)
    canvas.dress(axes)
    canvas.save(figure, file)


def _mean(values: Tensor) -> list[float]:
    return values.mean(0).tolist()  # type: ignore[no-any-return]


def _least(values: Tensor) -> list[float]:
    return values.amin(0).tolist()  # type: ignore[no-any-return]


def _most(values: Tensor) -> list[float]:
    return values.amax(0).tolist()  # type: ignore[no-any-return]


def main() -> None:
    out, *words = sys.argv[1:] or ["runs/kd_variance"]
    options = {"seeds": 5, "epochs": 60, "training": 0} | {
        name: int(value) for name, value in (word.split("=") for word in words)
    }
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    problem = load(bool(options["training"]))
    best = optimum(problem)
    found = [measure(problem, best, seed, options["epochs"]) for seed in range(options["seeds"])]
    values, weights = torch.tensor([one[0] for one in found]), torch.tensor([one[1] for one in found])
    lines = [*table(values, weights), "", *said(values)]
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    record = {"weights": WEIGHTS, "rows": [row[0] for row in ROWS], "excess": values.tolist(), **options}
    (folder / "table.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    draw(values, folder / "table.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
