"""How places that are chosen are compared with what an image shows."""

from __future__ import annotations

import torch

from benchmarks.foreground import foreground, overlap


def test_as_many_places_are_chosen_as_there_is_foreground() -> None:
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0], [1.0, 5.0, 2.0, 4.0], [1.0, 5.0, 2.0, 4.0]])
    ink = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    torch.testing.assert_close(overlap(scores, ink), torch.tensor([1.0, 0.0, 1 / 3, 0.5]))


def test_a_place_is_foreground_where_half_of_its_pixels_are_bright() -> None:
    pixels = torch.zeros(1, 1, 4, 4)
    pixels[0, 0, :2, 0] = 0.6
    pixels[0, 0, 2, 2] = 1.0
    pixels[0, 0, :2, 2:] = 0.4
    assert foreground(pixels, 0.5, (2, 2)).tolist() == [[True, False, False, False]]
    assert foreground(pixels, 0.3, (2, 2)).tolist() == [[True, True, False, False]]
