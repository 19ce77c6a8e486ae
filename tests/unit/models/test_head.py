"""The head measured on hand-made models."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from distill.models.head import LogitHead, measure


class Model(nn.Module):
    """Embedding, linear head, and whatever ``after`` does with the logits."""

    def __init__(self, after, bias: bool = False) -> None:
        super().__init__()
        self.body, self.output, self.after = nn.Embedding(12, 4), nn.Linear(4, 12, bias=bias), after

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.after(self.output(self.body(input_ids))))


INPUTS = {"input_ids": torch.arange(12)[None]}


def found(after, bias: bool = False) -> tuple[Model, LogitHead | None]:
    torch.manual_seed(0)
    model = Model(after, bias)
    result = measure(model, model.output, INPUTS, 10)
    if result is None:
        return model, None
    assert torch.equal(result[1], model.body(INPUTS["input_ids"]))
    return model, result[0]


def test_scaled_and_capped():
    model, head = found(lambda x: 5 * torch.tanh(x * 0.25 / 5), bias=True)
    assert (head.scale, head.cap) == (0.25, 5.0)
    expected = model(**INPUTS).logits[..., :10]
    torch.testing.assert_close(head(model.body(INPUTS["input_ids"])), expected)


def test_a_bias_behind_the_head_is_not_explained():
    assert found(lambda x: x + 0.5)[1] is None


def test_another_function_is_not_explained():
    assert found(lambda x: x.relu())[1] is None
    assert found(lambda x: x.log_softmax(-1))[1] is None


def test_an_output_that_is_never_called_is_not_explained():
    model = Model(lambda x: x)
    assert measure(model, nn.Linear(4, 12), INPUTS, 10) is None


def test_the_hook_is_gone_afterwards():
    model, _ = found(lambda x: x)
    assert model(**INPUTS).logits.abs().max() < 100


def test_a_wrapped_output_runs_through_its_own_forward():
    class Doubling(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    module = Doubling(4, 12)
    hidden = torch.randn(3, 4)
    assert torch.equal(LogitHead(module, 10)(hidden), module(hidden)[:, :10])
