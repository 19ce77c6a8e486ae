"""Sketches: exact where nothing collides, linear, and as far off as they say."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.analysis.sketch import Sketch


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


def test_it_is_linear_and_the_same_when_its_signs_are_drawn_again() -> None:
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
    ones = torch.ones(10_000, dtype=torch.bfloat16)
    made._signs["w"] = torch.ones(10_000, dtype=torch.int8)
    assert float(filled(made, {"w": ones})[0]) == 10_000
