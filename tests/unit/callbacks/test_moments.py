"""The optimizer's state as a step finds it, against a loop that steps the optimizer by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from distill.analysis.naming import place
from distill.callbacks.moments import KEYS, OptimizerState, state
from distill.commands.train import run
from distill.masked_optim import MaskedOptimizer
from tests import tiny
from tests.unit.callbacks.test_sparsity import Module, fit, llama

STEPS, LR = 4, 1e-2


class Sgd(Module):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LR, momentum=0.9)


def by_hand(optimizer: str) -> list[dict[str, dict[str, torch.Tensor]]]:
    """g, and m and v before the step, of every parameter at every step; the rules written out."""
    model, data = llama(), torch.randint(0, 11, (64, 6), generator=torch.Generator().manual_seed(0))
    named = dict(model.named_parameters())
    m = {name: torch.zeros_like(p) for name, p in named.items()}
    v = {name: torch.zeros_like(p) for name, p in named.items()}
    history = []
    for t in range(1, STEPS + 1):
        model.zero_grad()
        rows = data[4 * (t - 1) : 4 * t]
        sum(model(rows[i : i + 2], labels=rows[i : i + 2]).loss / 2 for i in (0, 2)).backward()
        grads = {name: p.grad.clone() for name, p in named.items()}
        before = {"g": grads, "m": dict(m), "v": dict(v)}
        history.append({name: {kind: before[kind][name] for kind in before} for name in named})
        norm = torch.stack([g.norm() for g in grads.values()]).norm()
        for name, p in named.items():
            g = grads[name] * min(1.0, 0.5 / float(norm))
            if optimizer == "sgd":
                m[name] = 0.9 * m[name] + g
                p.data -= LR * m[name]
            else:
                m[name], v[name] = 0.9 * m[name] + 0.1 * g, 0.999 * v[name] + 0.001 * g * g
                p.data -= LR * (m[name] / (1 - 0.9**t)) / ((v[name] / (1 - 0.999**t)).sqrt() + 1e-8)
    return history


def joined(step: dict[str, dict[str, torch.Tensor]], kind: str, group: str | None = None) -> torch.Tensor:
    return torch.cat([x[kind].flatten().double() for n, x in step.items() if group in (None, place(n).group)])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_equals_a_loop_written_by_hand(optimizer: str) -> None:
    module = (Sgd if optimizer == "sgd" else Module)(llama(), lr=LR)
    fit(module, OptimizerState(1), STEPS, accumulate_grad_batches=2, gradient_clip_val=0.5)
    history = by_hand(optimizer)
    assert set(module.records[1]) == {"time/optimizer_state"}
    for step in range(2, STEPS + 1):
        record, expected = module.records[step], history[step - 1]
        for scope, group in (("", None), ("/group/mlp", "mlp"), ("/group/norm", "norm")):
            cosine = cosine_similarity(joined(expected, "g", group), joined(expected, "m", group), dim=0)
            assert record[f"optimizer/gradient_momentum_cosine{scope}"] == pytest.approx(float(cosine), abs=1e-4)
            if optimizer == "adamw":
                root = joined(expected, "v", group).sqrt()
                variation = float(root.std(correction=0) / root.mean())
                assert record[f"optimizer/root_v_variation{scope}"] == pytest.approx(variation, rel=1e-3)
        assert any("variation" in key for key in record) == (optimizer == "adamw")


def test_records_what_it_documents_when_due_and_at_the_end() -> None:
    module = Module(llama())
    fit(module, OptimizerState(2), 5)
    assert list(module.records) == [2, 4, 5]
    patterns = [re.sub("[A-Z]{3,}", "[^/]+", key) for key in KEYS]
    for key in module.records[5]:
        assert any(re.fullmatch(pattern, key) for pattern in patterns), key
    for pattern in patterns:
        assert any(re.fullmatch(pattern, key) for key in module.records[5]), pattern


def test_frozen_parameters_do_not_count() -> None:
    model = llama()
    model.model.embed_tokens.requires_grad_(False)
    module = Module(model)
    fit(module, OptimizerState(1), 2)
    assert "optimizer/root_v_variation/group/embedding" not in module.records[2]
    assert "optimizer/root_v_variation/group/mlp" in module.records[2]


def test_it_changes_nothing_and_resumes(tmp_path: Path) -> None:
    def records(name: str, **changes: Any) -> list[dict[str, float]]:
        options = {"callbacks__optimizer_state": {"every_n_steps": 2}, "trainer__max_steps": 4, **changes}
        assert run(tiny.config("sft", **options), tmp_path / name) == 0
        return tiny.metrics(tmp_path / name)

    whole = records("whole")
    without = records("without", callbacks__optimizer_state=None)
    assert [r.get("loss") for r in whole] == [r.get("loss") for r in without]
    records("cut", trainer__max_steps=2)
    resumed = records("cut", resume="auto")
    key = "optimizer/gradient_momentum_cosine"
    assert [r[key] for r in whole if key in r] == [r[key] for r in resumed if key in r]
    assert sum(key in r for r in whole) == 2


@pytest.mark.parametrize("compact", [True, False])
def test_a_masked_optimizer_is_looked_at_inside_of_its_mask(compact: bool) -> None:
    parameter = torch.nn.Parameter(torch.randn(40, 5))
    mask = torch.rand(40, 5) < 0.3
    optimizer = MaskedOptimizer(torch.optim.AdamW([parameter], fused=True), compact=compact)
    optimizer.assign(parameter, mask)
    assert state(optimizer, parameter) is None
    gradients = [torch.randn(40, 5), torch.randn(40, 5)]
    for gradient in gradients:
        parameter.grad = gradient.clone()
        if gradient is gradients[0]:
            optimizer.step()
    found = state(optimizer, parameter)
    assert found is not None
    earlier, now = (gradient[mask].double() for gradient in gradients)
    measured = found.measured(0, parameter.numel())
    assert measured.count == int(mask.sum())
    assert measured.cosine == pytest.approx(float(cosine_similarity(now, earlier, dim=0)), abs=1e-6)
    root = earlier.abs()
    assert measured.variation == pytest.approx(float(root.std(correction=0) / root.mean()), rel=1e-5)
    halves = found.measured(0, 90) + found.measured(90, 110)
    assert halves.variation == pytest.approx(measured.variation, rel=1e-9)
