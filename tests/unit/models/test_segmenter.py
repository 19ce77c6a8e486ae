"""A SegFormer as logits of every pixel: the loss is that of transformers, and what is saved reads the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from distill.config.schema_adm import Adm
from distill.data.image_files import pixels_of
from distill.data.images import resized
from distill.errors import UserError
from distill.features import FeatureTerms
from distill.images import IGNORED, ImageRow, MaskBatch, collate
from distill.models import batch_statistics
from distill.models.build_images import SEGMENTER, Pictures, build
from distill.models.export import save
from distill.models.image_classifier import ImageClassifier
from distill.mutual import Mutual
from distill.objective import Objective
from tests import tiny

PICTURES = Pictures((3, 16, 16), ("ground", "disc", "square"))
SPEC: dict[str, Any] = {"config": tiny.SEGFORMER, "new_head": False}


def made(seed: int = 0, **changes: Any) -> ImageClassifier:
    return build(SPEC | changes, seed=seed, key="student", pictures=PICTURES, kind=SEGMENTER)


@pytest.fixture
def batch() -> MaskBatch:
    """Three images whose masks lack a class in some places."""
    draw = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 3, (3, 16, 16), generator=draw)
    masks[torch.rand((3, 16, 16), generator=draw) < 0.3] = IGNORED
    pixels = torch.rand((3, 3, 16, 16), generator=draw)
    rows = [ImageRow(number, pixels[number], masks[number]) for number in range(3)]
    found = collate(rows, sum(row.positions for row in rows))
    assert isinstance(found, MaskBatch)
    return found


def test_cross_entropy_is_that_of_transformers(batch: MaskBatch) -> None:
    student = made()
    student.model.eval()
    loss, sums = Objective(label_weight=1.0, logit_weight=0.0)(student.signal(batch), batch.targets, None, None)
    scaled = student.scale(batch.pixels)
    expected = student.model(pixel_values=scaled, labels=batch.labels)
    assert batch.window_positions == len(batch.targets) == int((batch.labels != IGNORED).sum())
    torch.testing.assert_close(loss / batch.window_positions, expected.loss)
    torch.testing.assert_close(sums["ce"] / batch.window_positions, expected.loss.detach())
    gradients = [torch.autograd.grad(one, student.model.decode_head.classifier.weight)[0]
                 for one in (loss / batch.window_positions, expected.loss)]  # fmt: skip
    torch.testing.assert_close(*gradients)


def test_distillation_is_the_divergence_of_every_pixel(batch: MaskBatch) -> None:
    """Written by hand on logits scaled as images: T², classes in front, the pixels without one left out last."""
    student, teacher = made(), made(1)
    objective = Objective(logit_weight=1.0, divergence="forward_kl", temperature=3.0, scale_by_temperature_squared=True)
    ours, theirs = (one.signal(batch) for one in (student, teacher))
    loss, _ = objective(ours, batch.targets, theirs, None)
    both = []
    for one in (student, teacher):
        logits = one.model(pixel_values=one.scale(batch.pixels)).logits
        both.append(functional.interpolate(logits, size=(16, 16), mode="bilinear") / 3)
    kept = functional.kl_div(both[0].log_softmax(1), both[1].softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(loss, 9 * kept[batch.labels != IGNORED].sum(), rtol=1e-4, atol=1e-5)


def test_networks_that_are_trained_together_learn_at_every_pixel_with_a_class(batch: MaskBatch) -> None:
    """Deep mutual learning, written out on logits scaled as images; and its gradients in both networks."""
    both = [made(), made(1)]
    for one in both:
        one.model.eval()
    together = Mutual({"teacher": both[1]}, "dml", "mean", label_weight=0.7, logit_weight=0.4)
    loss, sums = together(Objective(1.0, 0.5, "forward_kl"), [one.signal(batch) for one in both], batch.targets)
    valid = batch.labels != IGNORED
    logits = [
        functional.interpolate(one.model(pixel_values=one.scale(batch.pixels)).logits, size=(16, 16), mode="bilinear")
        for one in both
    ]
    expected = []
    for own, other, (label, logit) in ((*logits, (1.0, 0.5)), (*logits[::-1], (0.7, 0.4))):
        ce = functional.cross_entropy(own, batch.labels, ignore_index=IGNORED, reduction="none")
        kl = functional.kl_div(own.log_softmax(1), other.detach().softmax(1), reduction="none").sum(1)
        expected.append((label * ce + logit * kl)[valid].sum())
    torch.testing.assert_close(loss, expected[0] + expected[1], rtol=1e-5, atol=1e-5)
    for key, value in zip(("loss", "online/teacher/loss"), expected, strict=True):
        torch.testing.assert_close(sums[key], value.detach(), rtol=1e-5, atol=1e-5)
    heads = [one.model.decode_head.classifier.weight for one in both]
    for found, own in zip(torch.autograd.grad(loss, heads), torch.autograd.grad(sum(expected), heads), strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-4)


def test_feature_terms_count_an_image_by_its_pixels_with_a_class(batch: MaskBatch) -> None:
    """At every place of the map, with or without a class."""
    student, teacher = made(), made(1)
    layers = {f"{name}_layer": "segformer.stages.0" for name in ("student", "teacher")}
    terms = FeatureTerms(student, teacher, Adm(**layers, center=False, temperature=0.1).model_dump())
    with terms.watching():
        for network in (student, teacher):
            network.model.eval()
            network.signal(batch)
        found, (term, sums, _) = terms.described(batch), terms(batch)
    assert found.shape == (8, 8)
    cosine = (found.student * found.teacher).sum(1).reshape(3, 64)
    each = (torch.softmax(cosine.detach() / 0.1, 1) * (1 - cosine)).sum(1)
    pixels = (batch.labels != IGNORED).flatten(1).sum(1)
    assert len(set(pixels.tolist())) == 3
    torch.testing.assert_close(term, (pixels * each).sum())
    torch.testing.assert_close(sums["agreement"], (pixels * cosine.mean(1)).sum().detach())


def test_nothing_is_copied_where_every_pixel_has_a_class(batch: MaskBatch) -> None:
    full = replace(batch, labels=batch.labels.clamp(max=2))
    rows = full.select(torch.rand(3, 5, 8, 8))
    assert rows.is_contiguous()
    assert rows._base is not None, "a view of what was scaled"
    grid = torch.rand(3, 5, 16, 16)
    assert torch.equal(full.select(grid), grid.permute(0, 2, 3, 1).reshape(-1, 5))
    assert batch.select(grid).shape == (len(batch.targets), 5)


def test_a_saved_model_reads_images_as_it_was_trained_on_them(tmp_path: Path) -> None:
    student = made()
    save(student, tmp_path / "model")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "model").eval()
    assert model.config.id2label == dict(enumerate(PICTURES.classes))
    draw = torch.Generator().manual_seed(1)
    image = Image.fromarray(torch.randint(0, 256, (16, 16, 3), generator=draw, dtype=torch.uint8).numpy())
    student.model.eval()
    with torch.no_grad():
        given = processor(images=image, return_tensors="pt")
        logits = model(**given).logits
        torch.testing.assert_close(logits, student.hidden(resized(pixels_of(image), 16)[None]), rtol=1e-4, atol=1e-5)
        maps = processor.post_process_semantic_segmentation(model(**given), target_sizes=[(16, 16)])
    assert maps[0].shape == (16, 16)
    wide = processor(images=image.resize((40, 20)), return_tensors="pt")["pixel_values"]
    assert wide.shape == (1, 3, 16, 16), "the middle of the longer side, as data.image_size takes it"


def test_a_backbone_gets_a_head(tmp_path: Path) -> None:
    """SegFormers are published as classifiers of ImageNet, and with heads for 150 classes."""
    config = AutoConfig.for_model(**tiny.SEGFORMER, num_labels=7)
    config.architectures = []
    backbone = AutoModelForImageClassification.from_config(config)
    backbone.save_pretrained(tmp_path / "backbone")
    other = AutoModelForSemanticSegmentation.from_config(config)
    other.save_pretrained(tmp_path / "other")
    for name in ("backbone", "other"):
        spec = {"path": str(tmp_path / name), "new_head": False}
        with pytest.raises(UserError, match=r"`student.path` must be .*`student.new_head=true` draws one"):
            build(spec, seed=0, key="student", pictures=PICTURES, kind=SEGMENTER)
        found = build(spec | {"new_head": True}, seed=0, key="student", pictures=PICTURES, kind=SEGMENTER)
        source = backbone if name == "backbone" else other
        for key, tensor in source.segformer.state_dict().items():
            assert torch.equal(found.model.segformer.state_dict()[key], tensor), key
        assert found.model.decode_head.classifier.weight.shape[0] == 3
    kept = found.model.decode_head.linear_fuse.weight
    assert torch.equal(kept, other.decode_head.linear_fuse.weight), "of a head, what the classes leave alone stays"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (tiny.VIT, r"`student.config` must be a transformers configuration of a model for semantic segmentation"),
        ({**tiny.SEGFORMER, "num_labels": 5}, r"`student.config.num_labels` must be left out: the data says 3"),
    ],
)
def test_models_that_will_not_do(config: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        made(config=config)


def test_frozen_statistics_stay(tmp_path: Path) -> None:
    student = made(frozen_batch_norm=True)
    student.model.train()
    layer = student.model.decode_head.batch_norm
    assert not layer.training
    assert student.model.training
    assert batch_statistics.layers(student.model) == []
    one, three = torch.rand(1, 3, 16, 16), torch.rand(2, 3, 16, 16)
    alone, beside = student.hidden(one), student.hidden(torch.cat([one, three]))[:1]
    torch.testing.assert_close(alone, beside)
    assert int(layer.num_batches_tracked) == 0
    assert layer.weight.requires_grad
    save(student, tmp_path / "model")
    assert type(AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "model").decode_head.batch_norm) is (
        torch.nn.BatchNorm2d
    )
    moving = made()
    moving.model.train()
    assert not torch.allclose(moving.hidden(one), moving.hidden(torch.cat([one, three]))[:1], atol=1e-4)


PATCHED: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
PATCHED |= {"patch_size": 4}
PYRAMID = {"out_indices": [1, 2, 3, 4], "pool_scales": [1, 2]}
STAGES = [f"stage{number}" for number in range(1, 5)]
BACKBONE = {"model_type": "convnext", "patch_size": 2, "hidden_sizes": [8] * 4, "depths": [1] * 4}
BACKBONE |= {"out_features": STAGES}
FAMILIES: dict[str, dict[str, Any]] = {
    "beit": PATCHED | PYRAMID,
    "data2vec-vision": PATCHED | PYRAMID,
    "dpt": {**PATCHED, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8},
    "mobilenet_v2": {"depth_multiplier": 0.1},
    "mobilevit": {"hidden_sizes": [8] * 3, "neck_hidden_sizes": [4, 4, *[8] * 5], "num_attention_heads": 2},
    "upernet": {"backbone_config": BACKBONE, "hidden_size": 8, "pool_scales": [1, 2], "auxiliary_in_channels": 8},
}
"""As small as they get; `segformer` is everywhere else."""
LARGE = {"mobilevitv2", "sapiens2", "tipsv2_dpt"}
"""Not as small."""


def test_every_family_is_looked_at() -> None:
    known = set(MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES)
    assert known - set(FAMILIES) - LARGE - {"segformer"} == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_and_is_loaded_again(family: str, tmp_path: Path) -> None:
    """An auxiliary head, which no logit depends on, stays as it is."""
    pictures = Pictures((3, 32, 32), PICTURES.classes)
    draw = torch.Generator().manual_seed(0)
    pixels, masks = torch.rand((2, 3, 32, 32), generator=draw), torch.randint(0, 3, (2, 32, 32), generator=draw)
    spec = {"config": {"model_type": family, **FAMILIES[family]}, "new_head": False}
    student = build(spec, seed=0, key="student", pictures=pictures, kind=SEGMENTER)
    student.model.train()
    logits = MaskBatch(pixels, masks, torch.arange(2), masks.numel()).select(student.hidden(pixels))
    assert logits.shape == (masks.numel(), 3)
    functional.cross_entropy(logits, masks.flatten()).backward()
    assert [name for name, p in student.model.named_parameters() if p.requires_grad and p.grad is None] == []
    save(student, tmp_path / "model")
    path = {"path": str(tmp_path / "model")}
    again = build(path, seed=1, key="teacher", pictures=pictures, kind=SEGMENTER)
    for one in (student, again):
        one.model.eval()
    torch.testing.assert_close(again.hidden(pixels), student.hidden(pixels))
    more = Pictures((3, 64, 64), ("a", "b", "c", "d"))
    larger = build(path | {"new_head": True}, seed=1, key="student", pictures=more, kind=SEGMENTER)
    larger.model.eval()
    assert larger.hidden(torch.rand(1, 3, 64, 64)).shape[:2] == (1, 4)


@pytest.mark.parametrize(
    ("family", "config", "shape", "says"),
    [
        ("beit", PATCHED, (3, 32, 32), "(BeitForSemanticSegmentation requires config.out_indices to be a list of 4"),
        ("upernet", FAMILIES["upernet"], (1, 32, 32), "reads images of 1×32×32 (Make sure that the channel dimension"),
        ("dinov2", PATCHED, (3, 32, 32), "of a model for semantic segmentation (Unrecognized configuration class"),
    ],
)
def test_families_that_do_not_fit_are_refused_in_one_line(
    family: str, config: dict[str, Any], shape: tuple[int, int, int], says: str
) -> None:
    spec = {"config": {"model_type": family, **config}, "new_head": False}
    with pytest.raises(UserError, match=rf"`student\.config` must be .*{family}") as error:
        build(spec, seed=0, key="student", pictures=Pictures(shape, PICTURES.classes), kind=SEGMENTER)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
