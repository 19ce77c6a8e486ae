"""Where models run, and what a resumed command must have kept."""

import pytest
import torch

from distill.errors import UserError
from distill.labelling import origin


@pytest.mark.parametrize(
    ("accelerator", "gpus", "local_rank", "device"),
    [("cpu", 4, "1", "cpu"), ("auto", 0, "1", "cpu"), ("auto", 2, "1", "cuda:1"), ("gpu", 1, "0", "cuda:0")],
)
def test_each_process_has_a_gpu_of_its_own(
    accelerator: str, gpus: int, local_rank: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert origin.device(accelerator) == torch.device(device)


@pytest.mark.parametrize(("accelerator", "gpus"), [("gpu", 0), ("gpu", 1), ("auto", 1)])
def test_a_process_without_a_gpu_is_refused(accelerator: str, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match=f"`accelerator` must be 'cpu', .* shows {gpus} GPUs to its process 2"):
        origin.device(accelerator)


def test_settings_are_dotted_keys_without_the_free_ones() -> None:
    assert origin.settings({"out": "x", "a": {"b": 1, "c": 2}}, ("out", "a.c")) == {"a.b": 1}
