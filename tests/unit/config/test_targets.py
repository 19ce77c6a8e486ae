import pytest

from distill.config import targets


def found(config: object, prefixes: tuple[str, ...] = targets.ALLOWED) -> list[str]:
    return [error.key for error in targets.refused(config, prefixes)]


def test_allowed_targets_pass() -> None:
    config = {"a": {"_target_": "distill.callbacks.x.Y"}, "b": [{"_target_": "lightning.pytorch.callbacks.Timer"}]}
    assert found(config) == []


@pytest.mark.parametrize(
    "target",
    ["os.system", "torch.load", "distill.callbacksx.Y", "lightning.pytorch.Trainer", "distill.training.x", 3, None],
)
def test_anything_else_is_refused(target: object) -> None:
    assert found({"a": {"_target_": target}}) == ["a._target_"]


def test_every_depth_is_searched_and_every_find_reported() -> None:
    config = {
        "a": {"b": [{"c": {"_target_": "x.y"}}, {"_target_": "distill.callbacks.z", "arg": {"_target_": "os.system"}}]}
    }
    assert found(config) == ["a.b.0.c._target_", "a.b.1.arg._target_"]


def test_message_names_value_and_prefixes() -> None:
    [error] = targets.refused({"_target_": "os.system"}, targets.allowed())
    assert str(error) == (
        "`_target_` must be one of distill.callbacks.*, distill.losses.*, distill.rollouts.*, distill.teachers.*, "
        "lightning.pytorch.callbacks.* (DISTILL_ALLOWED_TARGETS adds prefixes), but is 'os.system'."
    )


def test_environment_adds_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_ALLOWED_TARGETS", "mine., yours.callbacks.,")
    assert targets.allowed() == (*targets.ALLOWED, "mine.", "yours.callbacks.")
    assert found({"a": {"_target_": "mine.X"}, "b": {"_target_": "your.X"}}, targets.allowed()) == ["b._target_"]
