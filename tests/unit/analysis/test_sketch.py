"""Sketches: exact where nothing collides, linear, and as far off as they say."""

from __future__ import annotations

import zlib

import pytest
import torch
from torch import Tensor

from distill.analysis.sketch import Sketch, signs


def filled(sketch: Sketch, vector: dict[str, Tensor]) -> Tensor:
    total = sketch.empty(1)
    for name, part in vector.items():
        sketch.add(total[0], name, part)
    return total[0]


def vector(seed: int, *shapes: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {str(n): torch.randn(*shape, generator=generator, dtype=torch.float64) for n, shape in enumerate(shapes)}


def flat(parts: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts.values()])


SHAPES = ((30, 41), (7,), (5, 9, 11), (1,))


def sketch(size: int, seed: int = 0) -> Sketch:
    return Sketch({name: part.numel() for name, part in vector(0, *SHAPES).items()}, size, seed)


def test_enough_buckets_keep_every_coordinate() -> None:
    length = len(flat(vector(0, *SHAPES)))
    found = sketch(length)
    assert found.exact
    assert not sketch(length - 1).exact
    assert torch.equal(filled(found, vector(0, *SHAPES)), flat(vector(0, *SHAPES)))


def test_every_coordinate_has_one_bucket_and_a_sign_of_its_own() -> None:
    """Unit vectors fold to ±1 at their place modulo r."""
    made, lengths = sketch(97), {name: part.numel() for name, part in vector(0, *SHAPES).items()}
    place = 0
    for name, length in lengths.items():
        for at in range(length):
            unit = torch.zeros(length)
            unit[at] = 1
            total = made.empty(1)[0]
            made.add(total, name, unit)
            assert total.nonzero().flatten().tolist() == [place % 97]
            assert abs(float(total[place % 97])) == 1
            place += 1


def mixed(word: int) -> int:
    """lowbias32 on Python's integers."""
    word ^= word >> 16
    word = word * 0x7FEB352D & 0xFFFFFFFF
    word ^= word >> 15
    word = word * 0x846CA68B & 0xFFFFFFFF
    return word ^ word >> 16


@pytest.mark.parametrize("key", [0, 12345, 0xF1234567])
def test_signs_are_the_hash_written_out(key: int) -> None:
    """So they are those of every device and of every rank: no generator has a say."""
    expected = [2 * (mixed(mixed(at // 32) ^ key) >> at % 32 & 1) - 1 for at in range(1000)]
    assert signs(key, 1000, "cpu").tolist() == expected
    assert signs(key, 7, "cpu").tolist() == expected[:7], "those of a shorter part are the first of a longer one"


def test_signs_are_as_if_drawn() -> None:
    """Even, alike neither to their neighbours at any distance that the layout has, nor to those of another name."""
    count = 1 << 20
    ours, theirs = (signs(key, count, "cpu").float() for key in (1, 2))
    for distance in (1, 2, 7, 8, 16, 31, 32, 33, 64, 256, 65_521):
        assert abs(float((ours[:-distance] * ours[distance:]).mean())) < 4 * count**-0.5, distance
    for lag in (0, 32, 64):
        assert abs(float((ours[: count - lag] * theirs[lag:]).mean())) < 4 * count**-0.5
    assert abs(float(ours.mean())) < 4 * count**-0.5
    by_bit = ours.view(-1, 32).mean(0)
    assert float((by_bit.square() * (count / 32)).sum()) < 70, "chi-squared of 32 bits, beyond 1 in 10,000"


def test_it_is_linear_and_the_same_when_its_signs_are_hashed_again_and_asks_no_generator() -> None:
    made, a, b = sketch(97), vector(1, *SHAPES), vector(2, *SHAPES)
    both = {name: a[name] + b[name] for name in a}
    apart = filled(made, a)
    made.forget()
    state = torch.get_rng_state()
    torch.testing.assert_close(apart + filled(made, b), filled(sketch(97), both), rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), state)


def test_inner_products_are_unbiased_and_off_by_the_stated_error() -> None:
    size, draws = 101, 400
    a, b = vector(1, *SHAPES), vector(2, *SHAPES)
    b = {name: 0.5 * a[name] + b[name] for name in a}
    square, product = float(flat(a) @ flat(a)), float(flat(a) @ flat(b))
    found = torch.tensor([[float(x @ x), float(x @ y)] for x, y in pairs(size, draws, a, b)], dtype=torch.float64)
    stated = torch.tensor([2 * square**2, square * float(flat(b) @ flat(b)) + product**2]).div(size).sqrt()
    assert ((found.mean(0) - torch.tensor([square, product])).abs() < 4 * stated / draws**0.5).all()
    assert (found.std(0) / stated - 1).abs().max() < 0.2


def pairs(size: int, draws: int, *vectors: dict[str, Tensor]) -> list[tuple[Tensor, ...]]:
    return [tuple(filled(sketch(size, seed), parts) for parts in vectors) for seed in range(draws)]


def test_columns_of_a_matrix_do_not_share_buckets() -> None:
    """All energy in one column of a wide matrix: with a prime r the error is still the stated one."""
    column = torch.zeros(400, 64, dtype=torch.float64)
    column[:, 3] = 1
    size = 101
    made = [Sketch({"w": column.numel()}, size, seed) for seed in range(200)]
    norms = torch.tensor([float(filled(one, {"w": column}).square().sum()) for one in made]) / 400
    assert float(norms.std()) < 1.3 * (2 / size) ** 0.5


def test_half_precision_is_added_up_in_full() -> None:
    made = Sketch({"w": 10_000}, 1)
    signed = signs(zlib.crc32(b"0 w"), 10_000, "cpu").to(torch.bfloat16)
    assert float(filled(made, {"w": signed})[0]) == 10_000
