"""Identity of tokenizers by content, and the ids that end a sequence."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig

from distill.errors import UserError
from distill.models import tokenizers


def test_a_saved_tokenizer_is_the_same(make_tokenizer, tmp_path):
    one = make_tokenizer()
    one.save_pretrained(tmp_path)
    assert tokenizers.fingerprint(one) == tokenizers.fingerprint(AutoTokenizer.from_pretrained(tmp_path))
    assert len(tokenizers.fingerprint(one)) == 64
    tokenizers.check_same(one, AutoTokenizer.from_pretrained(tmp_path))


def test_another_size_is_refused(make_tokenizer):
    with pytest.raises(UserError, match=r"`teacher\.path`.* 16 tokens, the teacher's 15"):
        tokenizers.check_same(make_tokenizer(), make_tokenizer("0123456789+-*"))


def test_the_same_size_with_another_mapping_is_refused(make_tokenizer):
    with pytest.raises(UserError, match="id 2 is '0' for the student, '1' for the teacher"):
        tokenizers.check_same(make_tokenizer("0123456789"), make_tokenizer("1023456789"))


def test_another_special_id_is_refused(make_tokenizer):
    teacher = make_tokenizer()
    teacher.eos_token = "="
    with pytest.raises(UserError, match="eos_token_id is 0 for the student, 15 for the teacher"):
        tokenizers.check_same(make_tokenizer(), teacher)


def test_an_added_token_is_refused(make_tokenizer):
    teacher = make_tokenizer()
    teacher.add_tokens(["<think>"])
    with pytest.raises(UserError, match="16 tokens, the teacher's 17"):
        tokenizers.check_same(make_tokenizer(), teacher)


def test_the_padding_token_means_nothing(make_tokenizer):
    teacher = make_tokenizer()
    teacher.pad_token = "="
    tokenizers.check_same(make_tokenizer(), teacher)


def test_vocabulary_with_gaps_counts_to_the_largest_id(make_tokenizer):
    assert tokenizers.vocab_size(make_tokenizer()) == len(make_tokenizer()) == 16
    assert tokenizers.vocab_size(SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 7})) == 8


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [(None, None, {0}), (3, None, {0, 3}), (3, [4, 5], {0, 3, 4, 5}), ([0, 99], 16, {0})],
)
def test_every_end_of_sequence_counts(config, generation, expected, make_tokenizer):
    model = SimpleNamespace(
        config=LlamaConfig(eos_token_id=config), generation_config=GenerationConfig(eos_token_id=generation)
    )
    assert tokenizers.eos_ids(make_tokenizer(), model) == expected


def test_one_line_is_short():
    line = tokenizers.one_line(ValueError("first\n  second " + "word " * 100))
    assert line.startswith("first second word")
    assert len(line) <= 200
    assert tokenizers.one_line(KeyError()) == "KeyError"
