"""What is compared with θ₀: every replica of every weight, and the buffers that a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distill import distributed
from distill.callbacks.update_mask import UpdateMask
from distill.errors import RunError
from distill.masked_optim import MaskedOptimizer

FROZEN = {name: torch.tensor([True, False, False, False]) for name in ("first", "second", "router_bias", "decay")}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.zeros(4)) for _ in range(2))
        self.register_buffer("router_bias", torch.zeros(4))
        self.register_buffer("decay", torch.zeros(4, dtype=torch.float64))


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def callback(model: Model, tmp_path: Path) -> UpdateMask:
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, tmp_path / "model.safetensors")
    made = UpdateMask(tmp_path, FROZEN.__getitem__, checksum="", density=0.25, every_n_steps=None)
    optimizer = MaskedOptimizer(torch.optim.AdamW(model.parameters(), fused=True), compact=True)
    strategy = SimpleNamespace(handles_gradient_accumulation=False)
    trainer: Any = SimpleNamespace(optimizers=[optimizer], strategy=strategy)
    module = SimpleNamespace(lm=SimpleNamespace(model=model))
    made.setup(trainer, module, "fit")
    made.on_fit_start(trainer, module)
    return made


def values(model: Model, name: str) -> Tensor:
    found: Tensor = model.state_dict()[name]
    return found


@pytest.mark.parametrize("name", FROZEN)
def test_a_sign_of_zero_outside_the_mask_is_a_violation(name: str, model: Model, callback: UpdateMask) -> None:
    values(model, name)[0] = 7.0
    callback.verify(1)
    values(model, name)[2] = -0.0
    with pytest.raises(RunError, match=rf"`{name}`: 1 coordinates outside the mask .* at step 2;"):
        callback.verify(2)


@pytest.mark.parametrize("name", FROZEN)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_replica_that_has_changed_on_one_rank_only_ends_the_run_on_both(
    rank: int, name: str, model: Model, callback: UpdateMask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``rank`` is where it has changed."""
    told: list[Any] = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "gather_objects", lambda mine: told.append(mine) or [mine, mine])
    callback.verify(1)
    values(model, name)[1:] = 1.0
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "gather_objects", lambda mine: [mine, *told] if rank == 0 else [*told, mine])
    with pytest.raises(RunError, match=f"`{name}`: 3 coordinates"):
        callback.verify(2)
