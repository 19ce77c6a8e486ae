from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from transformers import AutoTokenizer

import distill
from distill.data.char_tokenizer import CHARACTERS, build_tokenizer

SHIPPED = Path(distill.__file__).parent / "assets" / "tokenizer"


def test_text_survives():
    tokenizer = build_tokenizer()
    for text in ("12+34=46", "0 - 7 = -7 ?", CHARACTERS, ""):
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text)
        assert tokenizer.decode(ids) == text


def test_special_tokens_differ_and_are_not_added():
    tokenizer = build_tokenizer()
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3
    ids = tokenizer("1+1=2")["input_ids"]
    assert tokenizer.decode([*ids, tokenizer.eos_token_id, tokenizer.pad_token_id], skip_special_tokens=True) == "1+1=2"


def test_unknown_characters_are_visible():
    tokenizer = build_tokenizer()
    assert tokenizer("1x")["input_ids"][1] == tokenizer.unk_token_id


def test_the_shipped_folder_is_what_the_module_writes(tmp_path):
    subprocess.run([sys.executable, "-m", "distill.data.char_tokenizer", str(tmp_path)], check=True)
    shipped, written = AutoTokenizer.from_pretrained(SHIPPED), AutoTokenizer.from_pretrained(tmp_path)
    assert shipped.get_vocab() == written.get_vocab() == build_tokenizer().get_vocab()
    assert shipped.decode(shipped("12+34=46")["input_ids"]) == "12+34=46"
    assert shipped.eos_token_id == build_tokenizer().eos_token_id
