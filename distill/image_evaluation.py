"""How good an image classifier is on held-out images, how well its confidence fits, and how far it is from a teacher.

The work is split over the ranks by image and every rank gets all predictions, so the result is the same for any world
size. ``n`` images, ``V`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from distill import distributed, sharding
from distill.data.images import Images
from distill.errors import RunError, UserError
from distill.images import ImageBatch, ImageRow, ImageSample, collate
from distill.losses.divergence import forward_kl, log_probs, reverse_kl
from distill.models.causal_lm import evaluating
from distill.models.image_classifier import ImageClassifier
from distill.teachers.base import Teacher
from distill.teachers.frozen import FrozenTeacher
from distill.types import Signal

BINS = 15
"""Of confidence, for the calibration error: those of Guo et al. (arXiv 1706.04599)."""
TOP = 5
IDENTITY_TOLERANCE = 1e-3
"""Nats per image between a model and itself."""


@dataclass(frozen=True)
class ImageEvaluation:
    """Result over all images and ranks; equal on every rank.

    ``accuracy`` and ``top5`` (None below 10 classes) are shares of images, ``ece`` is the expected calibration error
    (15 bins, L1), ``ce`` the mean cross-entropy in nats. Against a teacher, None without one: ``kl`` is KL(p_S‖p_T),
    ``forward_kl`` KL(p_T‖p_S), both in nats, ``agreement`` the share of images whose likeliest class is the same. Of
    masks they are those of pixels, beside ``miou``, the mean over classes of intersection over union.
    """

    accuracy: float
    top5: float | None
    ece: float
    ce: float
    kl: float | None
    forward_kl: float | None
    agreement: float | None
    samples: list[dict[str, Any]]
    miou: float | None = None

    def metrics(self) -> dict[str, float]:
        """What was measured, under the keys of the log."""
        found = {
            "eval/accuracy": self.accuracy,
            "eval/top5_accuracy": self.top5,
            "eval/ece": self.ece,
            "eval/ce": self.ce,
            "eval/reverse_kl": self.kl,
            "eval/forward_kl": self.forward_kl,
            "eval/agreement": self.agreement,
            "eval/miou": self.miou,
        }
        return {key: value for key, value in found.items() if value is not None}


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
    """Evaluates on the first ``limit`` images (None: all) and returns ``keep_samples`` predictions (None: all).

    A collective: every rank calls it. ``on_progress`` hears the number of images of each batch. Raises UserError
    without images. Options that only language has are taken and left alone.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    if count == 0:
        raise UserError("data.eval_size", count, "at least 1")
    ours, theirs, labels, ids = _predicted(student, teacher, dataset, count, batch_size, on_progress)
    classes = ours.shape[-1]
    kl = forward = agreement = None
    if theirs is not None:
        kl, forward = (float(measure(ours, theirs, normalised=True).mean()) for measure in (reverse_kl, forward_kl))
        agreement = float((ours.argmax(-1) == theirs.argmax(-1)).double().mean())
    share = partial(multiclass_accuracy, ours, labels, num_classes=classes, average="micro")
    return ImageEvaluation(
        accuracy=float(share()),
        top5=float(share(top_k=TOP)) if classes >= 2 * TOP else None,
        ece=float(multiclass_calibration_error(ours.exp(), labels, num_classes=classes, n_bins=BINS, norm="l1")),
        ce=float(-ours.gather(-1, labels[:, None]).mean()),
        kl=kl,
        forward_kl=forward,
        agreement=agreement,
        samples=_shown(ours, labels, ids, student.classes)[:keep_samples],
    )


def measure(
    student: ImageClassifier,
    teacher: Teacher | None,
    held_out: Images,
    identical: bool,
    options: dict[str, Any],
    evaluate: Callable[..., ImageEvaluation] = evaluate,
) -> dict[str, float]:
    """Metrics of step 0: ``eval/teacher_accuracy``, ``eval/teacher_ece`` and, of pixels, ``eval/teacher_miou`` of a
    single frozen teacher. ``identical`` says that teacher and student are the same weights.

    Raises:
        RunError: the KL between a model and itself is not zero, so losses cannot be trusted.
    """
    if not isinstance(teacher, FrozenTeacher):
        return {}
    with nullcontext() if identical else sharding.by_layer(teacher.lm.model):
        asked, judge = (student, teacher) if identical else (teacher.lm, None)
        score = evaluate(asked, judge, held_out, keep_samples=0, **options)
    if score.kl is not None and not score.kl < IDENTITY_TOLERANCE:
        raise RunError(f"student and teacher are the same weights, but their KL is {score.kl:.2g} nats per image.")
    found = {"eval/teacher_accuracy": score.accuracy, "eval/teacher_ece": score.ece, "eval/teacher_miou": score.miou}
    return {key: value for key, value in found.items() if value is not None}


def answered(
    student: ImageClassifier,
    teacher: Teacher | None,
    dataset: Images,
    count: int,
    batch_size: int,
    on_progress: Callable[[int], None] | None,
) -> Iterator[tuple[ImageBatch, list[Signal], int]]:
    """This rank's share of the first ``count`` images, every world-size-th of them, a batch at a time: the batch, what
    the student and the teacher say of it, and how many of its images count. Heads are called inside of the loop."""
    # Models in shards take all ranks in every forward pass, so that each rank has equally many images.
    mine = range(distributed.rank(), count, distributed.world_size())
    filled = [*mine, 0][: math.ceil(count / distributed.world_size())]
    device = next(student.model.parameters()).device
    # A sharded teacher is asked by all ranks together.
    distributed.barrier()
    with evaluating(student.model):
        for start in range(0, len(filled), batch_size):
            samples: list[ImageSample] = [dataset[index] for index in filled[start : start + batch_size]]
            rows = [ImageRow(sample.id, sample.pixels, sample.label) for sample in samples]
            batch = collate(rows, window_positions=0).to(device)
            signals = [student.signal(batch), *([] if teacher is None else [teacher.signal(batch)])]
            with sharding.gathered([*student.head_parameters, *([] if teacher is None else teacher.head_parameters)]):
                yield batch, signals, min(len(rows), max(len(mine) - start, 0))
            if on_progress is not None:
                on_progress(len(rows))


def _predicted(
    student: ImageClassifier,
    teacher: Teacher | None,
    dataset: Images,
    count: int,
    batch_size: int,
    on_progress: Callable[[int], None] | None,
) -> tuple[Tensor, Tensor | None, Tensor, list[int]]:
    """fp64 log-probabilities ``[n, V]`` of the student and the teacher, labels ``[n]`` and ids, in dataset order."""
    found: list[tuple[Tensor, ...]] = []
    for batch, signals, counted in answered(student, teacher, dataset, count, batch_size, on_progress):
        parts = (*map(_log_probs, signals), batch.labels.cpu(), batch.sample_ids.cpu())
        found.append(tuple(part[:counted] for part in parts))
    share = [torch.cat(parts) for parts in zip(*found, strict=True)]
    shares: list[Any] = distributed.gather_objects(share)
    *both, labels, ids = (_in_turns([one[number] for one in shares]) for number in range(len(share)))
    return both[0], both[1] if len(both) > 1 else None, labels, ids.tolist()


def _log_probs(signal: Signal) -> Tensor:
    return log_probs(signal.head(signal.hidden).double()).cpu()


def _in_turns(shares: list[Tensor]) -> Tensor:
    """What each rank has of every world-size-th image → all images in dataset order."""
    whole = shares[0].new_empty((sum(map(len, shares)), *shares[0].shape[1:]))
    for number, share in enumerate(shares):
        whole[number :: len(shares)] = share
    return whole


def _shown(ours: Tensor, labels: Tensor, ids: list[int], classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Predictions in the form of rollouts: what was asked, what came, what is right, and whether it is the same."""
    return [
        {
            "prompt": f"image {id_}",
            "completion": f"{classes[guess]} ({float(row[guess].exp()):.1%})",
            "answer": classes[label],
            "score": float(guess == label),
        }
        for id_, row, guess, label in zip(ids, ours, ours.argmax(-1).tolist(), labels.tolist(), strict=True)
    ]
