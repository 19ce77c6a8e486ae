"""Bytes of fake tensors."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from distill.planning.tracker import Tracker


def test_it_counts_what_exists_and_forgets_what_is_freed() -> None:
    tracker = Tracker()
    with FakeTensorMode(), tracker, tracker.within("inputs"):
        kept = torch.zeros(1000)
        for _ in range(3):
            torch.zeros(5000)
        view = kept[10:]
    assert tracker.live["inputs"] == 4000
    assert tracker.peak.total == 4000 + 20000
    del kept
    assert tracker.live["inputs"] == 4000, "a view holds its storage"
    del view
    assert tracker.live["inputs"] == 0


def test_gradients_are_named_when_they_are_accumulated() -> None:
    tracker = Tracker()
    with FakeTensorMode():
        model = nn.Linear(100, 50)
        with tracker:
            tracker.watch(model, "weights")
            model(torch.zeros(8, 100)).sum().backward()
    size = 4 * (100 * 50 + 50)
    assert tracker.live["weights"] == tracker.live["gradients"] == size


def test_recomputation_saves_activations() -> None:
    def peak(recompute: bool) -> int:
        tracker = Tracker()
        with FakeTensorMode():
            layers = [nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(8)]
            with tracker:
                states = torch.zeros(512, 64)
                for layer in layers:
                    states = checkpoint(layer, states, use_reentrant=False) if recompute else layer(states)
                states.sum().backward()
        return tracker.peak.total

    # Of each layer 512 × (64 + 256 + 256) numbers are saved, or its input alone.
    assert peak(False) > 8 * 512 * 576 * 4
    assert peak(True) < 0.45 * peak(False)


def test_temporaries_inside_an_operator_count() -> None:
    tracker = Tracker(on_heap=False)
    with FakeTensorMode(), tracker:
        torch.zeros(100, 1000).logsumexp(-1)
    assert tracker.peak.resident >= 3 * 400_000


def test_pausing_counts_nothing() -> None:
    tracker = Tracker()
    with FakeTensorMode(), tracker, tracker.paused():
        assert torch.zeros(10).numel() == 10
    assert tracker.peak.total == 0
