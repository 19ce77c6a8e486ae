"""Batch statistics of one image: where a model cannot do without a second, and which micro-batches have none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distill.errors import UserError
from distill.models import batch_statistics
from distill.models.build_images import Pictures, build
from tests import tiny


def model(config: dict[str, Any], size: int = 8) -> Any:
    return build({"config": config}, seed=0, key="student", pictures=Pictures((1, size, size), tuple("ab")))


@pytest.mark.parametrize(("config", "size", "fewest"), [(tiny.RESNET, 8, 2), (tiny.RESNET, 32, 1), (tiny.VIT, 8, 1)])
def test_how_many_images_a_model_needs_is_what_torch_says(config: dict[str, Any], size: int, fewest: int) -> None:
    found = model(config, size)
    before = {name: tensor.clone() for name, tensor in found.model.state_dict().items()}
    assert batch_statistics.fewest(found) == fewest
    assert all(torch.equal(tensor, before[name]) for name, tensor in found.model.state_dict().items())
    found.model.train()
    images = torch.rand(fewest, 1, size, size)
    found.hidden(images)
    if fewest == 2:
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            found.hidden(images[:1])


@pytest.mark.parametrize(
    ("rows", "size", "says"),
    [
        (12, 1, "`trainer.micro_batch_size` must be null, or a number above 1 .*12 images of a step.*, but is 1"),
        (13, 4, "`trainer.micro_batch_size` must be null, or .*13 images of a step leave one alone.*, but is 4"),
        (1, None, "`data.batch_size` must be at least 2 images for each process"),
        (1, 4, "`data.batch_size` must be at least 2 images for each process"),
    ],
)
def test_a_micro_batch_of_one_image_is_refused(rows: int, size: int | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        batch_statistics.check(model(tiny.RESNET), rows, size)
    batch_statistics.check(model(tiny.VIT), rows, size)


@pytest.mark.parametrize(("rows", "size"), [(12, None), (12, 2), (14, 4), (2, 8)])
def test_others_are_not(rows: int, size: int | None) -> None:
    batch_statistics.check(model(tiny.RESNET), rows, size)
