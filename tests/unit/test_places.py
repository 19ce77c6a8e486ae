"""Places of images: a corner that changes changes that place the most, whatever the layer's output looks like."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distill import features, places, taps
from distill.errors import UserError
from distill.models.causal_lm import evaluating
from tests.unit.models.test_image_families import NEXT, PATCHED, PYRAMID, READ, WINDOWED, made

SIDE, PATCH = 32, 4
REGISTERS = {**PATCHED, "num_register_tokens": 16}
"""With the class token 17 more than the 64 patches: 81 states, a square."""
# As many channels as rows and columns.
CUBE = {**NEXT, "patch_size": 4, "drop_path_rate": 0.0}
FOUND: dict[str, tuple[str, dict[str, Any], str | None, places.Places]] = {
    "registers": ("dinov2_with_registers", REGISTERS, None, places.Places("states", (8, 8), 17)),
    "class token": ("dinov2", PATCHED, "dinov2.encoder.layer.0", places.Places("states", (8, 8), 1)),
    "two tokens": ("deit", PATCHED, None, places.Places("states", (8, 8), 2)),
    "a tower of CLIP": ("clip", READ["clip"], None, places.Places("states", (8, 8), 1)),
    "a tower's layer": ("siglip", READ["siglip"], "vision_model.encoder.layers.0", places.Places("states", (8, 8), 0)),
    "Swin, merged once": ("swin", WINDOWED, "swin.encoder.layers.0", places.Places("states", (8, 8), 0)),
    "SegFormer's blocks": (
        "segformer",
        {**PYRAMID, "drop_path_rate": 0.0},
        "segformer.stages.1.blocks.0",
        places.Places("states", (4, 4), 0),
    ),
    "SegFormer's stage": ("segformer", PYRAMID, "segformer.stages.0", places.Places("channels first", (8, 8))),
    "channels last": ("convnext", NEXT, "convnext.encoder.stages.0.layers.0.layernorm",
                      places.Places("channels last", (16, 16))),
    "first, as many of each": ("convnext", CUBE, "convnext.encoder.stages.0", places.Places("channels first", (8, 8))),
    "last, as many of each": ("convnext", CUBE, "convnext.encoder.stages.0.layers.0.layernorm",
                              places.Places("channels last", (8, 8))),
    "Hiera, in order again": ("hiera", READ["hiera"], None, places.Places("states", (4, 4), 0)),
}  # fmt: skip


def looked_at(family: str, config: dict[str, Any], layer: str | None) -> tuple[Any, taps.Taps]:
    network = made(family, config)
    return network, taps.Taps({"student": features._module(network, layer, "adm.student_layer")})


@pytest.mark.parametrize("case", FOUND)
def test_a_place_is_where_the_image_has_it(case: str) -> None:
    family, config, layer, expected = FOUND[case]
    network, watched = looked_at(family, config, layer)
    found = places.find(network, watched, "student", layer, "adm.student_layer")
    assert found == expected

    noise = torch.rand(3, PATCH, PATCH, generator=torch.Generator().manual_seed(1))

    def at(row: int, column: int, strength: float = 1.0) -> Tensor:
        pixels = torch.zeros(1, 3, SIDE, SIDE)
        pixels[0, :, row : row + PATCH, column : column + PATCH] = strength * noise
        with evaluating(network.model), watched.open():
            network.hidden(pixels)
            return found(watched["student"])

    nothing = at(0, 0, 0.0)
    assert nothing.shape[2:] == expected.grid
    for row in (0, SIDE - PATCH):
        for column in (0, SIDE - PATCH):
            change = (at(row, column) - nothing).abs().sum((0, 1))
            where = int(change.argmax())
            down, across = (n / s for n, s in zip(divmod(where, change.shape[1]), change.shape, strict=True))
            assert (down >= 0.5, across >= 0.5) == (row > 0, column > 0)


@pytest.mark.parametrize(
    ("family", "config", "layer", "says"),
    [
        ("swin", WINDOWED, "swin.encoder.layers.0.blocks.0.attention", "row by row (of 3 images it has [192, 4, 8])"),
        ("swin", WINDOWED, "swin.pooler", "row by row (of 3 images it has [3, 16, 1])"),
        ("clip", READ["clip"], "vision_model.embeddings.position_embedding", "of 3 images it has [1, 65, 8]"),
        ("hiera", READ["hiera"], "hiera.encoder.stages.0", "row by row (of 3 images it has [3, 64, 8])"),
        ("pvt", PYRAMID, None, "row by row (of 3 images it has [3, 2, 8]), but is 'pvt'"),
        ("vit", PATCHED, "vit.layers", "a module that runs in a forward pass"),
        ("vit", PATCHED, "classifier", "of 3 images it has [3, 5]"),
    ],
)
def test_what_has_no_places_is_refused(family: str, config: dict[str, Any], layer: str | None, says: str) -> None:
    network, watched = looked_at(family, config, layer)
    with pytest.raises(UserError, match=r"^`adm.student_layer` must be") as error:
        places.find(network, watched, "student", layer, "adm.student_layer")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("count", "size", "config", "expected"),
    [
        (12, (16, 12), {}, places.Places("states", (4, 3))),
        (13, (16, 12), {"patch_size": [4, 4]}, places.Places("states", (4, 3), 1)),
        (12 + 5, (16, 12), {"patch_size": 4}, None),
        (12 + 5, (16, 12), {"patch_size": 4, "num_register_tokens": 4}, places.Places("states", (4, 3), 5)),
        (12 + 2, (16, 12), {"patch_size": 4, "num_register_tokens": 4}, None),
        (7, (8, 8), {}, None),
    ],
)
def test_states_are_counted(count: int, size: tuple[int, int], config: dict[str, Any], expected: Any) -> None:
    assert places._states(count, size, type("Config", (), config)()) == expected
