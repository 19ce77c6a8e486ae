"""How good a model is at giving pixels of held-out images a class: accuracy, IoU, calibration, distance to a teacher.

What is counted are sums, which are added up over batches and ranks: no rank holds the logits of all pixels, and the
result is the same for any world size. ``N`` pixels of a batch that have a class, ``V`` classes.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from distill import distributed
from distill.data.images import Images
from distill.errors import UserError
from distill.image_evaluation import BINS, ImageEvaluation, answered
from distill.images import IGNORED, ImageBatch
from distill.losses.divergence import forward_kl, log_probs, reverse_kl
from distill.mask_pictures import picture
from distill.models.image_classifier import ImageClassifier
from distill.teachers.base import Teacher
from distill.types import Signal

CHUNK = 2**16
"""Pixels whose log-probabilities exist at once, in fp64."""
PICTURED = 4
"""Samples that are drawn."""


class Tally:
    """Sums over pixels, of one rank until :meth:`total`; ``taught`` says that there is a teacher to compare with."""

    def __init__(self, classes: int, taught: bool = False) -> None:
        self.iou = MulticlassJaccardIndex(classes, average="macro", validate_args=False, sync_on_compute=False)
        # What torchmetrics would keep of every pixel: so many in each bin, how sure of them, how many of them right.
        # Its last bin is that of a confidence of 1.
        self.bins = torch.zeros(3, BINS + 1, dtype=torch.float64)
        # The same on a rank whose images have no pixel with a class.
        names = ("count", "right", "ce", *(("kl", "forward_kl", "agreement") if taught else ()))
        self.sums = {name: torch.zeros((), dtype=torch.float64) for name in names}

    def add(self, ours: Tensor, theirs: Tensor | None, labels: Tensor) -> None:
        """fp64 log-probabilities ``[N, V]`` of student and teacher, class numbers ``[N]``."""
        guesses = ours.argmax(-1)
        right = (guesses == labels).double()
        self.iou.update(guesses, labels)
        confidence = ours.amax(-1).exp()
        edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
        bins = torch.bucketize(confidence, edges, right=True) - 1
        self.bins.index_add_(1, bins, torch.stack([torch.ones_like(confidence), confidence, right]))
        found = {"count": torch.ones_like(right), "right": right, "ce": -ours.gather(-1, labels[:, None])[:, 0]}
        if theirs is not None:
            found["kl"], found["forward_kl"] = (one(ours, theirs, normalised=True) for one in (reverse_kl, forward_kl))
            found["agreement"] = (guesses == theirs.argmax(-1)).double()
        for name, values in found.items():
            self.sums[name] += values.sum()

    def total(self) -> tuple[dict[str, float], float, float]:
        """Means over all pixels of all ranks by name, the expected calibration error, and mIoU: the mean of
        intersection over union of those classes that labels or predictions have. A collective."""
        self.bins = distributed.all_sum(self.bins)
        self.iou.confmat = distributed.all_sum(self.iou.confmat)
        totals = distributed.all_sum(torch.stack([*self.sums.values()]))
        sums = dict(zip(self.sums, totals.tolist(), strict=True))
        means = {name: value / sums["count"] for name, value in sums.items()}
        ece = float((self.bins[1] - self.bins[2]).abs().sum()) / sums["count"]
        return means, ece, float(self.iou.compute())


def evaluate(
    student: ImageClassifier,
    teacher: Teacher | None,
    dataset: Images,
    *,
    batch_size: int,
    limit: int | None = None,
    keep_samples: int | None = None,
    on_progress: Callable[[int], None] | None = None,
    **unused: Any,
) -> ImageEvaluation:
    """Evaluates on the first ``limit`` images (None: all); ``keep_samples`` of them are described (None: all), the
    first few with a picture.

    A collective: every rank calls it. ``on_progress`` hears the number of images of each batch. Raises UserError
    without images, or where no pixel has a class. Options that only language has are taken and left alone.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    if count == 0:
        raise UserError("data.eval_size", count, "at least 1")
    kept = count if keep_samples is None else min(keep_samples, count)
    tally, shown = Tally(len(student.classes), teacher is not None), list[tuple[int, dict[str, Any]]]()
    place = distributed.rank()
    for batch, signals, counted in answered(student, teacher, dataset, count, batch_size, on_progress):
        guesses = _tallied(tally, batch, signals, counted)
        for image in range(counted):
            if place < kept:
                shown.append((place, _described(batch, guesses, image, student.classes, drawn=place < PICTURED)))
            place += distributed.world_size()
    if int(distributed.all_sum(tally.sums["count"])) == 0:
        raise UserError("data.eval_size", count, "held-out masks with a pixel of some class")
    means, ece, miou = tally.total()
    shares: list[Any] = distributed.gather_objects(shown)
    samples = [sample for _, sample in sorted(chain.from_iterable(shares), key=lambda pair: pair[0])]
    kl, forward, agreement = (means.get(name) for name in ("kl", "forward_kl", "agreement"))
    return ImageEvaluation(means["right"], None, ece, means["ce"], kl, forward, agreement, samples, miou)


def _tallied(tally: Tally, batch: ImageBatch, signals: list[Signal], counted: int) -> Tensor:
    """Adds the first so many images of a batch; returns all of their guesses ``[B, X, Y]``, :data:`IGNORED` where there
    is no class."""
    guesses = batch.labels.clone()
    guesses[guesses != IGNORED] = torch.cat([signals[0].head(part).argmax(-1) for part in _parts(signals[0])])
    targets, pixels = batch.targets.cpu(), int((batch.labels[:counted] != IGNORED).sum())
    for start in range(0, pixels, CHUNK):
        end = min(start + CHUNK, pixels)
        both = [log_probs(one.head(one.hidden[start:end]).double()).cpu() for one in signals]
        tally.add(both[0], both[1] if len(both) > 1 else None, targets[start:end])
    return guesses.cpu()


def _parts(signal: Signal) -> tuple[Tensor, ...]:
    return torch.split(signal.hidden, CHUNK)


def _described(batch: ImageBatch, guesses: Tensor, image: int, classes: tuple[str, ...], drawn: bool) -> dict[str, Any]:
    """One image in the form of a rollout: what was asked, what came, what is right."""
    mask, guess = batch.labels[image].cpu(), guesses[image]
    right, valid = int(((guess == mask) & (mask != IGNORED)).sum()), int((mask != IGNORED).sum())
    told = {
        "prompt": f"image {int(batch.sample_ids[image])}",
        "completion": f"{', '.join(_names(guess, classes))} ({right} of {valid} pixels right)",
        "answer": ", ".join(_names(mask, classes)),
        "score": None,
    }
    return told | ({"picture": picture(batch.pixels[image].cpu(), mask, guess)} if drawn else {})


def _names(mask: Tensor, classes: tuple[str, ...]) -> list[str]:
    return [classes[number] for number in mask.unique().tolist() if number != IGNORED]
