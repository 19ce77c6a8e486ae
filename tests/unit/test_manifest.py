"""Hashing a checkpoint's files: the digest is hashlib's, and a long file gives signs of life."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from distill import manifest, watchdog


@pytest.mark.parametrize(("size", "signs"), [(0, 0), (64, 1), (65, 2), (640, 10)])
def test_hashing_gives_a_sign_of_life_per_block(
    size: int, signs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "BLOCK", 64)
    content = bytes(number % 251 for number in range(size))
    (tmp_path / "file").write_bytes(content)
    before = watchdog.here.count
    assert manifest.sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    assert watchdog.here.count - before == signs
