import logging

import pytest

from distill.config.redact import MASK, RedactFilter, is_secret_name, redact, redact_text

PLANTED = "planted-value-0123456789"
HF = "hf_" + "abcdefghijklmnopqrstuvwx"


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "token",
        "hub.token",
        "authToken",
        "WANDB_API_KEY",
        "apikey",
        "db_password",
        "clientSecret",
        "credentials",
        "AWS_ACCESS_KEY_ID",
        "private-key",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer",
        "student.tokenizer",
        "max_new_tokens",
        "tokens_per_second",
        "eos_token",
        "pad_token_id",
        "token_count",
        "keys",
        "monkey",
        "seed",
        "",
    ],
)
def test_names_of_the_trade_are_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "secret",
    [
        HF,
        "ghp_" + "a" * 36,
        "github_pat_" + "b" * 30,
        "sk-" + "c" * 40,
        "glpat-" + "d" * 20,
        "AKIA" + "ABCDEFGH12345678",
    ],
)
def test_known_forms_are_masked_inside_text(secret: str) -> None:
    text = redact_text(f"cannot load x ({secret}), sorry")
    assert secret not in text
    assert text == f"cannot load x ({MASK}), sorry"


def test_userinfo_of_an_address_is_masked() -> None:
    assert (
        redact_text("https://user:pw@host/x and https://tok@host/y")
        == f"https://{MASK}@host/x and https://{MASK}@host/y"
    )
    assert redact_text("git@host:a/b https://host/a@b") == "git@host:a/b https://host/a@b"


def test_forty_hex_digits_are_a_secret_only_as_a_wandb_key() -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    assert key not in redact_text(f"wandb: api key {key} refused")
    assert redact_text(f"git revision {key}") == f"git revision {key}"


def test_values_of_secret_environment_variables_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_PASSWORD", PLANTED)
    monkeypatch.setenv("MY_SERVICE_NAME", "harmless-name")
    monkeypatch.setenv("SHORT_TOKEN", "true")
    text = redact_text(f"a={PLANTED} b=harmless-name c=true")
    assert text == f"a={MASK} b=harmless-name c=true"


def test_assignments_in_text() -> None:
    assert redact_text("distill train ++logger.api_key=abc seed=1") == f"distill train ++logger.api_key={MASK} seed=1"
    assert redact_text("{'password': 'a b', 'n': 1}") == f"{{'password': {MASK}, 'n': 1}}"


def test_nested_values_and_keys() -> None:
    config = {
        "student": {"tokenizer": "a/b", "path": f"https://me:{PLANTED}@host/m", "revision": None},
        "extra": [{"hub_token": PLANTED, "use_auth_token": True}, ("x", HF)],
        "logger": {"api_key": [PLANTED, 12345678], "password": ""},
        HF: 1,
    }
    shown = redact(config)
    assert PLANTED not in str(shown)
    assert HF not in str(shown)
    assert shown["student"] == {"tokenizer": "a/b", "path": f"https://{MASK}@host/m", "revision": None}
    assert shown["extra"] == [{"hub_token": MASK, "use_auth_token": True}, ("x", MASK)]
    assert shown["logger"] == {"api_key": [MASK, MASK], "password": ""}
    assert config["logger"]["api_key"][0] == PLANTED, "the configuration itself keeps its values"


def test_other_values_are_left_alone() -> None:
    config = {"lr": 1e-3, "steps": 5, "on": True, "none": None, "text": "plain", "list": [1, 2.5]}
    assert redact(config) == config


def test_filter_masks_message_arguments_and_traceback(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(RedactFilter())
    logger = logging.getLogger("test_redact")
    try:
        raise ValueError(f"bad {HF}")
    except ValueError:
        logger.exception("failed with %s", HF)
    assert HF not in caplog.text
    assert f"failed with {MASK}" in caplog.text
    assert f"ValueError: bad {MASK}" in caplog.text
