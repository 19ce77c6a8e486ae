"""How far a network that learns through an adapter has gone from its base, on held-out completions; and when to stop.

A collective: each rank reads its share, and only sums are exchanged. ``N`` target positions, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from distill import distributed, sharding, watchdog
from distill.callbacks.collapse import SECTION, Collapse, Drift
from distill.data.base import Dataset, Examples
from distill.errors import UserError
from distill.evaluation import CHUNK, share
from distill.likelihood import row
from distill.losses.divergence import kl, log_probs
from distill.models.base import Network
from distill.models.causal_lm import CausalLM, evaluating
from distill.models.lora import is_adapted, switched_off
from distill.types import MicroBatch, collate


def measure(lm: CausalLM, dataset: Dataset, *, batch_size: int, limit: int | None = None) -> Drift:
    """Of a network with an adapter, over the target tokens of the first ``limit`` examples (None: all).

    Raises:
        UserError: named ``callbacks.collapse``; there are no such tokens.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    samples, counted = share(dataset, count)
    rows = [row(sample, counts=place < counted) for place, sample in enumerate(samples)]
    rows.sort(key=lambda one: len(one.input_ids))
    sums = torch.zeros(4, dtype=torch.float64)
    with evaluating(lm.model):
        for start in range(0, len(rows), batch_size):
            batch = collate(rows[start : start + batch_size], lm.pad_id, window_positions=0, on_policy=False)
            sums += _sums(lm, batch.to(next(lm.model.parameters()).device)).cpu()
    ce, base_ce, apart, positions = distributed.all_sum(sums).tolist()
    if positions == 0:
        raise UserError(SECTION, "given", "null where held-out rows have no completions to be read")
    return Drift(ce / positions, base_ce / positions, apart / positions)


def _sums(lm: CausalLM, batch: MicroBatch) -> Tensor:
    """float64 ``[4]``: −log p, −log p of the base, KL(p‖p of the base), ``N``; logits exist chunk by chunk."""
    adapted = lm.signal(batch)
    with switched_off(lm.model):
        base = lm.signal(batch)
    sums = torch.zeros(4, dtype=torch.float64, device=batch.targets.device)
    with sharding.gathered(lm.head_parameters):
        for start in range(0, len(batch.targets), CHUNK):
            chunk = slice(start, start + CHUNK)
            targets = batch.targets[chunk, None]
            ours = log_probs(adapted.head(adapted.hidden[chunk]))
            # The head may be adapted, too.
            with switched_off(lm.model):
                theirs = log_probs(base.head(base.hidden[chunk]))
            sums[0] -= ours.gather(-1, targets).double().sum()
            sums[1] -= theirs.gather(-1, targets).double().sum()
            sums[2] += kl(ours, theirs).double().sum()
    sums[3] = len(batch.targets)
    return sums


def watching(
    config: Mapping[str, Any],
    cotrained: Mapping[str, Network],
    held_out: Examples,
    limit: int,
    inference: Callable[[], AbstractContextManager[object]],
) -> list[L.Callback]:
    """What stops a run whose adapted networks collapse; ``inference`` surrounds their use."""
    options = config["callbacks"]["collapse"]
    adapted = {name: network for name, network in cotrained.items() if is_adapted(network.model)}
    if options is None or not adapted:
        return []

    def look(network: Network) -> Drift:
        with watchdog.phase("evaluation"), inference():
            lm, texts = cast(CausalLM, network), cast(Dataset, held_out)
            return measure(lm, texts, batch_size=config["rollout"]["batch_size"], limit=limit)

    return [Collapse({name: partial(look, network) for name, network in adapted.items()}, **options)]
