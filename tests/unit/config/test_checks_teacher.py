"""Who teaches: every mistake is one line that names the key, and sensible teachers pass."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.config.test_checks import GOOD, SHARDED, errors

MEMBERS = {"maths": {"path": "m"}, "code": {"path": "c", "weight": 2.0}}
MULTI = {**GOOD, "teacher": {"kind": "multi", "members": MEMBERS}}
EACH = {
    **GOOD,
    "data": {"source": "text", "path": "x"},
    "teacher": {"kind": "multi", "members": {"maths": {"path": "m"}, "code": {"path": "c"}}, "by": "domain"},
}
SELF = {**GOOD, "teacher": {"kind": "self", "prompt": "{prompt} ({answer})"}}


@pytest.mark.parametrize("base", [MULTI, EACH, SELF, {**GOOD, "teacher": {**GOOD["teacher"], "prompt": "{hint}"}}])
def test_sensible_teachers_pass(base: dict[str, Any]) -> None:
    assert errors(base) == {}


@pytest.mark.parametrize(
    ("base", "changes", "key"),
    [
        (MULTI, {"teacher__members": {}}, "teacher.members"),
        (MULTI, {"teacher__members": {"maths": {"path": "m"}}}, "teacher.members"),
        (MULTI, {"teacher__members": MEMBERS | {"law": {"path": "l", "weight": 0}}}, "teacher.members.law.weight"),
        (MULTI, {"teacher__members": MEMBERS | {"law": {"path": "l", "weight": -1}}}, "teacher.members.law.weight"),
        (MULTI, {"teacher__members": MEMBERS | {"law": {}}}, "teacher.members.law.path"),
        (MULTI, {"teacher__members": MEMBERS | {"law": {"placement": "sharded"}}}, "teacher.members.law.placement"),
        (
            MULTI,
            {"teacher__members": MEMBERS | {"law": {"path": "l", "attn_implementation": "flash_attention_2"}}},
            "teacher.members.law.attn_implementation",
        ),
        (MULTI, {"teacher__path": "t"}, "teacher.kind"),
        (MULTI, SHARDED, "teacher.placement"),
        (MULTI, {"rollout": {"kind": "speculative"}}, "teacher.kind"),
        (MULTI, {"teacher__by": "domain"}, "teacher.by"),
        (EACH, {"teacher__members": MEMBERS}, "teacher.members.code.weight"),
        (SELF, {"teacher__prompt": None}, "teacher.prompt"),
        (SELF, {"teacher__prompt": "no field"}, "teacher.prompt"),
        (SELF, {"teacher__prompt": "{prompt"}, "teacher.prompt"),
        (SELF, {"teacher__prompt": "{prompt.__class__}"}, "teacher.prompt"),
        (SELF, {"teacher__prompt": "{answer:03d}"}, "teacher.prompt"),
        (SELF, {"teacher__path": "t"}, "teacher.kind"),
        (SELF, {"teacher__by": "domain"}, "teacher.kind"),
        (SELF, SHARDED, "teacher.placement"),
        (SELF, {"rollout": {"kind": "speculative"}}, "teacher.kind"),
        (GOOD, {"teacher__prompt": "{answer}", "rollout": {"kind": "speculative"}}, "teacher.prompt"),
        (GOOD, {"teacher__members": MEMBERS}, "teacher.kind"),
    ],
)
def test_impossible_teachers_are_refused(base: dict[str, Any], changes: dict[str, Any], key: str) -> None:
    found = errors(base, **changes)
    assert key in found
    assert "\n" not in found[key]


def test_what_is_refused_says_what_to_do() -> None:
    assert "teacher=frozen" in errors(MULTI, teacher__members={"maths": {"path": "m"}})["teacher.members"]
    assert "nobody learns" in errors(SELF, teacher__prompt=None)["teacher.prompt"]
    assert "data=text" in errors(MULTI, teacher__by="domain")["teacher.by"]
