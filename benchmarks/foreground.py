"""Do the places where student and teacher agree most lie on what the image shows?

``python -m benchmarks.foreground STUDY FOLDER [--seeds 0,1,2,3,4] [--jobs 2]`` trains DML with and without ADM as the
study (`online_digits`, `online_fashion`) does, or takes its runs from FOLDER where they are there, and prints the
overlap (intersection over union) of the places that each rule chooses with the foreground of held-out images. A place
is foreground where half of its pixels or more are brighter than a threshold; a rule chooses as many places as are.

Rules: ``consensus``, the cosine that weighs the student's term, as ``callbacks.feature_maps`` draws it; ``untrained``,
the same of the networks before their first step; ``other image``, the trained cosines of another held-out image, which
know where things usually are, but not this one; ``teacher's length`` and ``student's length``, of the centred features
of one network; ``chance``, any places.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.studies import harness, online_digits, online_fashion
from distill import tasks
from distill.config.schema import Model
from distill.config.schema_adm import Adm
from distill.data import images
from distill.features import STUDENT, TEACHER, FeatureTerms
from distill.images import ImageBatch, ImageRow, collate
from distill.losses.agreement import averaging, centred
from distill.models.causal_lm import evaluating
from distill.report.collect import RunRecord
from distill.report.spread import Spread, paired, spread, verdict
from distill.teachers.cotrained import CotrainedTeacher

STUDIES = {"online_digits": (online_digits.STUDY, 0.5), "online_fashion": (online_fashion.STUDY, 0.1)}
"""Each with the brightness of foreground: strokes are grey at their edges, clothes are dark all over at times."""
ARMS = ("dml", "dml + ADM")
CONSENSUS, CHANCE, SHARE = "consensus", "chance", "share"
DRAWS = 200
"""Of random places for an image."""


def overlap(scores: Tensor, ink: Tensor) -> Tensor:
    """Intersection over union of ``ink`` (bool) and as many of the highest ``scores``, both ``[n, L]``: ``[n]``."""
    order = scores.argsort(1, descending=True)
    count = ink.sum(1)
    hit = (ink.gather(1, order) & (torch.arange(ink.shape[1]) < count[:, None])).sum(1)
    return hit / (2 * count - hit)


def foreground(pixels: Tensor, threshold: float, size: tuple[int, int]) -> Tensor:
    """``[n, C, X, Y]`` → bool ``[n, h·w]``."""
    bright = (pixels.mean(1) > threshold).float()
    down, across = (averaging(bright.shape[1 + axis], part, bright) for axis, part in enumerate(size))
    return (down @ bright @ across.T >= 0.5).flatten(1)


def look(networks: Mapping[str, Any], batch: ImageBatch) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """The consensus and each network's length at every place, ``[n, h·w]``, and h and w."""
    terms = FeatureTerms(networks[STUDENT], networks[TEACHER], Adm().model_dump())
    with torch.no_grad(), ExitStack() as stack:
        for network in networks.values():
            stack.enter_context(evaluating(network.model))
        stack.enter_context(terms.watching())
        for network in networks.values():
            network.signal(batch)
        flat, sample, size = terms.locations(batch)
        agreed = terms.maps(batch)["agreement"]
    assert size is not None, "images have places"
    lengths = {name: centred(features, sample, len(agreed)).norm(dim=1) for name, features in flat.items()}
    places = {f"{name}'s length": length.reshape(len(agreed), -1) for name, length in lengths.items()}
    return {CONSENSUS: agreed.flatten(1), **places}, size


def rules(run: RunRecord, batch: ImageBatch) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """The scores of every place by each rule that looks at networks, ``[n, h·w]``, and h and w."""
    config, task = run.config, tasks.of(run.config)
    drawn = task.build(config["student"], seed=config["seed"], key="student", source=config["data"])
    together = task.teacher(config, drawn)
    assert isinstance(together, CotrainedTeacher)
    before, _ = look({STUDENT: drawn, TEACHER: together.networks["teacher"]}, batch)
    folders = {STUDENT: run.path / "model", TEACHER: run.path / "online" / "teacher" / "model"}
    trained = {
        name: task.build(Model(path=str(folder)).model_dump(), seed=0, key=name, source=config["data"])
        for name, folder in folders.items()
    }
    scores, size = look(trained, batch)
    return scores | {"untrained": before[CONSENSUS], "other image": scores[CONSENSUS].roll(1, 0)}, size


def measured(run: RunRecord, threshold: float) -> dict[str, float]:
    """The mean overlap of each rule over the held-out images that have foreground and background; ``share``, the mean
    share of foreground."""
    data = images.built(run.config["data"])[1]
    samples = [data[number] for number in range(min(run.config["data"]["eval_size"], len(data)))]
    batch = collate([ImageRow(sample.id, sample.pixels, sample.label) for sample in samples], len(samples))
    scores, size = rules(run, batch)
    ink = foreground(batch.pixels, threshold, size)
    told = ink.any(1) & ~ink.all(1)
    found = {name: float(overlap(values, ink)[told].mean()) for name, values in scores.items()}
    dice = torch.Generator().manual_seed(run.config["seed"])
    drawn = [overlap(torch.rand(ink.shape, generator=dice), ink)[told].mean() for _ in range(DRAWS)]
    return found | {CHANCE: float(torch.stack(drawn).mean()), SHARE: float(ink[told].float().mean())}


def tell(arm: str, by_seed: Mapping[int, Mapping[str, float]]) -> str:
    """The overlaps of an arm, and what consensus has over each of the others, pair by pair of equal seed."""
    lines = [
        f"| {arm}: chosen by | overlap | 95 % interval | consensus − it | 95 % interval | |",
        "|---|--:|---|--:|---|---|",
    ]
    results = {rule: {seed: values[rule] for seed, values in by_seed.items()} for rule in next(iter(by_seed.values()))}
    share = statistics.fmean(results.pop(SHARE).values())
    for rule, values in results.items():
        found, apart = spread(list(values.values())), paired(results[CONSENSUS], values)
        assert found is not None
        cells = f"| {rule} | {found.mean:.3f} | {shown(found)} |"
        more = "" if rule == CONSENSUS or apart is None else f" {apart.mean:+.3f} | {shown(apart)} | {verdict(apart)} |"
        lines.append(cells + (more or " | | |"))
    return "\n".join([*lines, "", f"Foreground: {share:.0%} of the places; {len(by_seed)} seeds.", ""])


def shown(found: Spread) -> str:
    return "" if found.low is None or found.high is None else f"{found.low:.3f} … {found.high:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=list(range(5)))
    parser.add_argument("--jobs", type=int, default=2, help="runs beside each other, one thread each")
    given = parser.parse_args()
    study, threshold = STUDIES[given.study]
    pair = replace(study, arms={arm: study.arms[arm] for arm in ARMS})
    runs = harness.play(pair, given.folder.absolute(), given.seeds, given.jobs)
    for arm, by_seed in runs.items():
        print(tell(arm, {seed: measured(run, threshold) for seed, run in by_seed.items()}))


if __name__ == "__main__":
    main()
