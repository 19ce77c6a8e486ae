"""LoRA adapters on a model through ``peft``, the model without its adapter, and with it merged in."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Any

from transformers import PreTrainedModel

from distill.errors import UserError


def apply(model: PreTrainedModel, options: dict[str, Any], *, key: str) -> Any:
    """Wraps ``model`` into a ``PeftModel`` of which only the adapter trains (LoRA: Hu et al., arXiv 2106.09685).

    ``options`` are the schema's ``r``, ``alpha``, ``dropout`` and ``target_modules``.

    Raises:
        UserError: when ``peft`` is missing or no module has the given names.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError(
            f"{key}.lora", options, "null unless peft is installed (`pip install 'distill[lora]'`)"
        ) from error
    config = LoraConfig(
        r=options["r"],
        lora_alpha=options["alpha"],
        lora_dropout=options["dropout"],
        target_modules=options["target_modules"],
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        allowed = "'all-linear' or names of modules of the model"
        raise UserError(f"{key}.lora.target_modules", options["target_modules"], allowed) from error


def is_adapted(model: Any) -> bool:
    """Whether an adapter is what trains of ``model``."""
    return hasattr(model, "merge_and_unload")


def alpha(model: Any) -> float | None:
    """What the adapter of ``model`` is scaled by, times its rank; None where there is none."""
    return model.active_peft_config.lora_alpha if is_adapted(model) else None


def switched_off(model: Any) -> AbstractContextManager[None]:
    """Inside, a ``PeftModel`` computes what its base does: there is no second copy of it."""
    found: AbstractContextManager[None] = model.disable_adapter()
    return found


def merged(model: Any) -> PreTrainedModel:
    """A plain model: ``model`` itself, or a copy of a ``PeftModel`` with its adapter added to the weights."""
    if not is_adapted(model):
        return model  # type: ignore[no-any-return]
    plain: PreTrainedModel = copy.deepcopy(model).merge_and_unload()
    return plain
