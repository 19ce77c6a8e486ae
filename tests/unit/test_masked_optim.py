"""Masked steps against torch's: bit equality at every size, frozen bits, bytes, and states that fit everywhere."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.masked_optim import MaskedOptimizer
from distill.selection import WIDTH, Compact, Whole

SIZES = (1, 2, 15, 16, 17, 31, 100, 1001, 4096, WIDTH - 1, WIDTH, WIDTH + 1, 2 * WIDTH + 37)
DENSITIES = (0.0, 0.01, 0.175, 0.5, 0.9, 1.0)
ADAMW = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.99), "eps": 1e-8}
SGD = {"lr": 1e-2, "weight_decay": 0.1, "momentum": 0.9}


def plain(name: str, parameters: list[Tensor], **changes: Any) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(parameters, **ADAMW | changes, fused=True)
    return torch.optim.SGD(parameters, **SGD | changes, fused=True)


def draw(size: int, density: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weights with every sort of zero and denormals, a mask, gradients of four steps (big ones outside of the mask)."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(size, generator=generator)
    weights[::7], weights[3::7], weights[5::11] = -0.0, 0.0, 1e-41
    mask = torch.rand(size, generator=generator) < density
    return weights, mask, torch.randn(4, size, generator=generator) * 10 ** torch.randn(4, size, generator=generator)


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(torch.int16 if tensor.dtype == torch.bfloat16 else torch.int32)


def train(
    optimizer: torch.optim.Optimizer, parameters: list[Tensor], gradients: list[Tensor], steps: slice = slice(None)
) -> None:
    for step in range(4)[steps]:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient[step].to(parameter.dtype).reshape(parameter.shape)
        optimizer.step()


def masked(
    name: str, parameters: list[Tensor], masks: list[Tensor], compact: bool = True, **changes: Any
) -> MaskedOptimizer:
    optimizer = MaskedOptimizer(plain(name, parameters, **changes), compact=compact)
    for parameter, mask in zip(parameters, masks, strict=True):
        optimizer.assign(parameter, mask)
    return optimizer


def by_hand(name: str, weights: Tensor, mask: Tensor, gradients: Tensor, **changes: Any) -> Tensor:
    """torch's own optimizer on masked gradients, decay and all; frozen coordinates as they were."""
    parameter = weights.clone().requires_grad_()
    train(plain(name, [parameter], **changes), [parameter], [gradients * mask])
    return torch.where(mask, parameter.detach(), weights)


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_equal_to_torch_on_masked_gradients_bit_for_bit(name: str, compact: bool) -> None:
    for size in SIZES:
        for density in DENSITIES:
            weights, mask, gradients = draw(size, density)
            parameter = weights.clone().requires_grad_()
            optimizer = masked(name, [parameter], [mask], compact)
            train(optimizer, [parameter], [gradients])
            expected = by_hand(name, weights, mask, gradients)
            assert torch.equal(bits(parameter), bits(expected)), (size, density)
            assert torch.equal(bits(parameter)[~mask], bits(weights)[~mask]), (size, density)
            assert not mask.any() or not torch.equal(parameter.detach()[mask], weights[mask])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_many_parameters_groups_and_steps(name: str) -> None:
    """Two groups with their own decay, one parameter without a gradient, learning rates that change."""
    shapes, ends = [(33, 7), (5,), (64, 64), (3, 3)], []
    masks = [draw(torch.Size(shape).numel(), 0.3, seed)[1] for seed, shape in enumerate(shapes)]
    for form in (True, False, None):
        drawn = [draw(mask.numel(), 0, seed)[0] for seed, mask in enumerate(masks)]
        parameters = [flat.reshape(shape).clone().requires_grad_() for flat, shape in zip(drawn, shapes, strict=True)]
        start = [bits(parameter).clone() for parameter in parameters]
        groups: Any = [{"params": parameters[:2], "weight_decay": 0.3}, {"params": parameters[2:], "weight_decay": 0.0}]
        optimizer = plain(name, groups)
        if form is not None:
            optimizer = MaskedOptimizer(optimizer, compact=form)
            for parameter, mask in zip(parameters, masks, strict=True):
                optimizer.assign(parameter, mask)
        for step in range(3):
            optimizer.param_groups[1]["lr"] = 10.0**-step
            for number, parameter in enumerate(parameters[:3]):
                gradient = draw(parameter.numel(), 0, step * 7 + number)[2][0]
                parameter.grad = (gradient if form is not None else gradient * masks[number]).reshape(parameter.shape)
            optimizer.step()
        found = [bits(parameter).reshape(-1) for parameter in parameters]
        ends.append([torch.where(m, f, s.reshape(-1)) for f, m, s in zip(found, masks, start, strict=True)])
        assert form is None or all(torch.equal(f, e) for f, e in zip(found, ends[-1], strict=True))
        assert torch.equal(found[3], start[3].reshape(-1)), "no gradient, no step"
    for compact, restored, expected in zip(*ends, strict=True):
        assert torch.equal(compact, expected)
        assert torch.equal(restored, expected)


def test_frozen_coordinates_keep_bits_that_arithmetic_would_not() -> None:
    """NaN with a payload, negative zero, infinity, denormals, and a gradient that is not finite."""
    strange = torch.tensor([0x7FC01234, -0x80000000, 0x7F800000, 1, 0x3F800000] * 20, dtype=torch.int32)
    for compact in (True, False):
        for name in ("adamw", "sgd"):
            parameter = strange.clone().view(torch.float32).requires_grad_()
            mask = torch.arange(100) % 5 == 4
            optimizer = masked(name, [parameter], [mask], compact)
            gradient = torch.where(mask, 1.0, float("nan")).expand(4, -1)
            train(optimizer, [parameter], [gradient])
            assert torch.equal(bits(parameter)[~mask], strange[~mask])
            assert (parameter.detach()[mask] < 1.0).all()
            parameter.grad = gradient[0].clone()
            assert float(optimizer.clip(1.0)) == pytest.approx(20**0.5)


@pytest.mark.parametrize("density", [0.01, 0.175, 0.3])
def test_bytes_of_a_compact_state(density: float) -> None:
    _, mask, gradients = draw(1_000_000, density)
    parameter = torch.zeros(1_000_000).requires_grad_()
    optimizer = masked("adamw", [parameter], [mask])
    train(optimizer, [parameter], [gradients], slice(0, 1))
    ours, dense = optimizer.bytes()
    held = sum(value.nbytes for value in optimizer.state[parameter].values() if value.ndim)
    assert held < ours < 1.26 * density * dense + 16 * 16 * 10
    assert dense == 8_000_000
    assert density != 0.175 or ours <= 0.25 * dense


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_saved_state_goes_on_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    weights, mask, gradients = draw(70_001, 0.2)
    weights = weights.to(dtype)
    straight, first = weights.clone().requires_grad_(), weights.clone().requires_grad_()
    train(masked(name, [straight], [mask]), [straight], [gradients])
    before = masked(name, [first], [mask])
    train(before, [first], [gradients], slice(0, 2))
    state = copy.deepcopy(before.state_dict())
    for key, value in state["state"][0].items():
        assert value.ndim == 0 or value.shape == first.shape
        assert value.ndim == 0 or key == "master" or not value[~mask].any(), "zero outside of the mask"
    second = first.detach().clone().requires_grad_()
    after = masked(name, [second], [mask])
    after.load_state_dict(state)
    train(after, [second], [gradients], slice(2, 4))
    assert torch.equal(bits(second), bits(straight))
    assert torch.equal(bits(second)[~mask], bits(weights)[~mask])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True), (None, True), (True, None)])
def test_states_pass_from_form_to_form(name: str, before: bool | None, after: bool | None) -> None:
    """None is torch's own optimizer; with its decay off, it leaves coordinates alone that never had a gradient."""
    weights, mask, gradients = draw(10_007, 0.3)
    expected = by_hand(name, weights, mask, gradients, weight_decay=0.0)
    parameter = weights.clone().requires_grad_()

    def make(form: bool | None) -> torch.optim.Optimizer:
        kept = plain(name, [parameter], weight_decay=0.0)
        return kept if form is None else masked(name, [parameter], [mask], form, weight_decay=0.0)

    first, second = make(before), make(after)
    train(first, [parameter], [gradients * mask], slice(0, 2))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, [parameter], [gradients * mask], slice(2, 4))
    assert torch.equal(parameter.detach(), expected)


def test_masters_of_bf16_weights_add_up_what_rounding_would_lose() -> None:
    parameter, mask = torch.ones(1000, dtype=torch.bfloat16).requires_grad_(), torch.arange(1000) % 3 == 0
    optimizer = masked("sgd", [parameter], [mask], lr=1e-4, momentum=0.0, weight_decay=0.0)
    for _ in range(100):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert torch.equal(parameter.detach()[mask], torch.full((334,), 0.99).bfloat16())
    assert torch.equal(parameter.detach()[~mask], torch.ones(666, dtype=torch.bfloat16))
    assert optimizer.state[parameter]["master"].numel() < 360


@pytest.mark.parametrize("density", DENSITIES)
def test_clipping_measures_the_masked_gradient(density: float) -> None:
    weights, mask, gradients = draw(5003, density)
    norms = []
    for compact in (True, False):
        parameter = weights.clone().requires_grad_()
        optimizer = masked("sgd", [parameter], [mask], compact, lr=1.0, momentum=0.0, weight_decay=0.0)
        parameter.grad = gradients[0].clone()
        norms.append(float(optimizer.clip(0.5)))
        dense = optimizer.gradient(parameter)
        assert dense is not None
        assert float(dense.double().norm()) == pytest.approx(min(norms[-1], 0.5), rel=1e-5)
        optimizer.step()
        assert float((parameter.detach() - weights).double().norm()) == pytest.approx(min(norms[-1], 0.5), rel=1e-4)
    assert norms[0] == norms[1] == pytest.approx(float((gradients[0] * mask).double().norm()))


@pytest.mark.parametrize("size", SIZES)
def test_selections_agree(size: int) -> None:
    """All at once, as on a GPU, too."""
    _, mask, (values, *_) = draw(size, 0.3)
    for selection in (Compact(mask), Compact(mask, at_once=True), Whole(mask)):
        assert torch.equal(selection.selected(), mask)
        assert selection.count == int(mask.sum())
        packed = selection.pack(values)
        assert packed.numel() == selection.slots
        assert torch.equal(selection.unpack(packed, torch.full((size,), 7.0)), torch.where(mask, values, 7.0))
        stepped = values.clone()
        for _, window in selection.windows(stepped, None):
            window.add_(1)
        assert torch.equal(stepped, torch.where(mask, values + 1, values))
