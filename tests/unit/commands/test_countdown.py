import pytest

from distill.commands import countdown as module
from distill.commands.countdown import countdown


def test_a_short_command_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with countdown("analyze", 4) as advance:
        for _ in range(4):
            advance(1)
    assert capsys.readouterr().err == ""


def test_a_long_one_tells_its_share_and_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 6.0, 12.0, 15.0, 24.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with countdown("analyze", 8) as advance:
        for _ in range(4):
            advance(1)
    assert capsys.readouterr().err.splitlines() == ["analyze: 25%, 36 s left", "analyze: 50%, 24 s left"]
