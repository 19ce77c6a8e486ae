"""Optimizers that step the coordinates of a mask and leave every other bit alone.

AdamW and SGD as torch computes them (its fused kernels), given only what the mask selects: gradients, decay and moments
outside of it do not exist. Under DeepSpeed the tensors that are stepped are its flat fp32 vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from distill.selection import Compact, Selection, Whole

COMPACT_BELOW = 0.5
"""Density of a mask below which the state is kept for the selected coordinates alone."""
MASTER = "master"
"""State of weights in bf16: the selected coordinates in fp32."""

Group = dict[str, Any]
State = dict[str, Any]


class MaskedOptimizer(Optimizer):
    """Does the steps of ``plain``, an AdamW or SGD whose parameters it takes over, inside of masks.

    Every parameter it is to step needs its mask by :meth:`assign`. A ``compact`` one keeps moments, and fp32 masters of
    bf16 weights, for the selected coordinates alone; otherwise moments are those of a dense optimizer, and frozen
    coordinates are restored after each step. In fp32 both give the same bits, and those of torch's fused optimizer on
    masked gradients whose decay is confined to the mask. ``state_dict`` is dense (zero outside), so that a checkpoint
    fits any strategy, either form, and torch's own optimizer.
    """

    def __init__(self, plain: Optimizer, *, compact: bool) -> None:
        self.compact, self.name = compact, type(plain).__name__
        self._kernel, self._moments = KERNELS[type(plain)]
        self._selections: dict[Tensor, Selection] = {}
        self._gradients: dict[Tensor, Tensor] = {}
        super().__init__(plain.param_groups, plain.defaults)

    def assign(self, parameter: Tensor, mask: Tensor) -> None:
        """``mask`` (bool) selects the coordinates of ``parameter`` to be stepped; it is not kept."""
        mask = mask.to(parameter.device)
        self._selections[parameter] = Compact(mask) if self.compact else Whole(mask)

    def selected(self, parameter: Tensor) -> Tensor:
        """Bool, flat: the mask of ``parameter``."""
        return self._selections[parameter].selected()

    @torch.no_grad()
    def clip(self, limit: float) -> Tensor:
        """Scales the masked gradients to a norm of at most ``limit`` together and returns the norm before.

        They wait for :meth:`step` inside, and ``grad`` is released. The norm is summed in fp64 and rounded, so that it
        is the same for either form of the state.
        """
        for parameter in self._parameters():
            if parameter.grad is not None:
                self._gradients[parameter] = self._selections[parameter].pack(parameter.grad)
                parameter.grad = None
        found = list(self._gradients.values())
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in found]
        norm = torch.linalg.vector_norm(torch.stack(norms)).float() if norms else torch.zeros(())
        scale = torch.clamp(limit / (norm + 1e-6), max=1.0)
        for gradient in found:
            gradient.mul_(scale)
        return norm

    def gradient(self, parameter: Tensor) -> Tensor | None:
        """The masked gradient of the step to come, dense and flat."""
        selection, taken = self._selections[parameter], self._gradients.get(parameter)
        if taken is None and parameter.grad is not None:
            taken = selection.pack(parameter.grad)
        return None if taken is None else selection.unpack(taken, taken.new_zeros(selection.numel))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = self._gradients.pop(parameter, None)
                if gradient is None and parameter.grad is not None:
                    gradient = self._selections[parameter].pack(parameter.grad)
                if gradient is not None:
                    self._advance(parameter, gradient, group)
        return loss

    def _advance(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        selection, state = self._selections[parameter], self.state[parameter]
        first = self._prepare(parameter, gradient, group)
        if "step" in state:
            state["step"] += 1
        kept = {key: state[key].reshape(-1) for key in self._moments if key in state}
        for slots, values in selection.windows(parameter.detach().reshape(-1), state.get(MASTER)):
            moments = [kept[key][slots] for key in self._moments if key in kept]
            self._kernel(values, gradient[slots], moments, state.get("step"), group, first)

    def _prepare(self, parameter: Tensor, gradient: Tensor, group: Group) -> bool:
        """Makes what is missing of a parameter's state; True at its first step."""
        state, selection = self.state[parameter], self._selections[parameter]
        if self.compact and parameter.dtype != torch.float32 and MASTER not in state:
            state[MASTER] = selection.pack(parameter.detach())
        if any(key in state for key in self._moments):
            return False
        shape = (selection.slots,) if self.compact else parameter.shape
        if self._kernel is _adamw:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        if self._kernel is _adamw or group["momentum"]:
            state.update({key: gradient.new_zeros(shape) for key in self._moments})
        return True

    def bytes(self) -> tuple[int, int]:
        """What state, masters and masks take here once every parameter has been stepped, and a dense state would."""
        moments = len(self._moments) if self.param_groups[0].get("momentum", 1) else 0
        ours = dense = 0
        for parameter, selection in self._selections.items():
            masters = self.compact and parameter.dtype != torch.float32
            size = 4 if self.compact else parameter.element_size()
            ours += selection.nbytes + size * selection.slots * (moments + masters)
            dense += parameter.element_size() * selection.numel * moments
        return ours, dense

    def state_dict(self) -> dict[str, Any]:
        content = super().state_dict()
        states = content["state"]
        for number, parameter in enumerate(self._parameters()):
            if number in states:
                states[number] = {key: self._dense(parameter, key, value) for key, value in states[number].items()}
        return content

    def moments(self, parameter: Tensor) -> State:
        """The state of a parameter, dense."""
        return {key: self._dense(parameter, key, value) for key, value in self.state.get(parameter, {}).items()}

    def master(self, parameter: Tensor) -> Tensor:
        """The weights that are stepped, dense: in fp32 where there is a master of them, else the parameter's own."""
        kept = self.state.get(parameter, {}).get(MASTER)
        return parameter.detach() if kept is None else self._dense(parameter, MASTER, kept)

    def write_master(self, parameter: Tensor, values: Tensor) -> None:
        """Puts ``values``, of the shape and dtype of :meth:`master`, inside of the mask into master and parameter."""
        selection, state = self._selections[parameter], self.state.get(parameter, {})
        packed = selection.pack(values)
        if MASTER in state:
            state[MASTER].copy_(packed)
        selection.unpack(packed, parameter.detach().view(-1))

    def _dense(self, parameter: Tensor, key: str, value: Tensor) -> Tensor:
        if value.ndim == 0:
            return value
        blank = parameter.detach().float() if key == MASTER else value.new_zeros(parameter.shape)
        flat = blank.clone().reshape(-1) if key == MASTER else blank.reshape(-1)
        return self._selections[parameter].unpack(value, flat).reshape(parameter.shape)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes a dense state, whoever wrote it."""
        groups, states = state_dict["param_groups"], state_dict["state"]
        super().load_state_dict({"state": {}, "param_groups": groups})
        numbers = [number for group in groups for number in group["params"]]
        for number, parameter in zip(numbers, self._parameters(), strict=True):
            self.state[parameter] = {
                key: self._own(parameter, value.to(parameter.device))
                for key, value in states.get(number, {}).items()
                if isinstance(value, Tensor) and (self.compact or key != MASTER)
            }

    def _own(self, parameter: Tensor, value: Tensor) -> Tensor:
        if value.ndim == 0:
            return value.to(torch.float32, copy=True)
        packed = self._selections[parameter].pack(value)
        return packed if self.compact else packed.to(parameter.dtype).reshape(parameter.shape)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


def _adamw(values: Tensor, gradient: Tensor, moments: list[Tensor], step: Any, group: Group, _: bool) -> None:
    beta1, beta2 = group["betas"]
    first, second = moments
    # What torch.optim.AdamW(fused=True) calls; the wrapper around it takes longer than a block's arithmetic.
    torch._fused_adamw_(
        [values], [gradient], [first], [second], [], [step],
        lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
        amsgrad=False, maximize=False, grad_scale=None, found_inf=None,
    )  # fmt: skip


def _sgd(values: Tensor, gradient: Tensor, moments: list[Tensor], _: Any, group: Group, first: bool) -> None:
    torch._fused_sgd_(
        [values], [gradient], moments,
        weight_decay=group["weight_decay"], momentum=group["momentum"], lr=group["lr"], dampening=0.0,
        nesterov=False, maximize=False, is_first_step=first, grad_scale=None, found_inf=None,
    )  # fmt: skip


def share_of_state(density: float, moments: int, itemsize: int) -> float:
    """Bytes of state, masters and masks beside the bytes of a dense state, of weights of ``itemsize`` bytes."""
    dense = itemsize * moments
    if not dense:
        return 1.0
    if density >= COMPACT_BELOW:
        return 1 + 1 / (8 * dense)
    return density * (4 * (moments + (itemsize != 4)) + 2) / dense


KERNELS: dict[type[Optimizer], tuple[Callable[..., None], tuple[str, ...]]] = {
    AdamW: (_adamw, ("exp_avg", "exp_avg_sq")),
    SGD: (_sgd, ("momentum_buffer",)),
}
"""What steps a stretch of coordinates, and the names of its moments in torch's optimizers."""
