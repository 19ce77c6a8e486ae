from __future__ import annotations

import pytest

from distill.data.encode import Encoder, Origin
from distill.errors import UserError

ORIGIN = Origin("data.path", "x.jsonl, line 3")


def encode(tokenizer, prompt, completion, limit=100, **options):
    return Encoder(tokenizer, limit, **options).text(prompt, completion, ORIGIN)


def test_targets_are_the_completion_and_the_end_token(byte_tokenizer):
    # The padding token is the end token here: masks must come from lengths.
    tokenizer = byte_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    encoded = encode(tokenizer, "Größe 🙂: ", "hello\n日本")
    split = len(encoded.prompt_ids)
    assert encoded.prompt_ids == encoded.input_ids[:split]
    assert tokenizer.decode(encoded.prompt_ids) == "Größe 🙂: "
    assert tokenizer.decode(encoded.input_ids[split:]) == "hello\n日本<|im_end|>"
    assert encoded.target_mask == (False,) * split + (True,) * (len(encoded.input_ids) - split)


def test_tokens_do_not_merge_across_the_end_of_the_prompt(byte_tokenizer):
    tokenizer = byte_tokenizer()
    encoded = encode(tokenizer, "a h", "ello")
    assert encoded.prompt_ids == encode(tokenizer, "a h", None).prompt_ids
    assert encoded.input_ids != (*tokenizer("a hello")["input_ids"], tokenizer.eos_token_id)
    assert tokenizer.decode(encoded.input_ids) == "a hello<|im_end|>"


@pytest.mark.parametrize("prompt", ["hi", "<s>hi"])
def test_one_bos_where_the_tokenizer_adds_it(byte_tokenizer, prompt):
    tokenizer = byte_tokenizer(bos=True)
    encoded = encode(tokenizer, prompt, "yo")
    assert tokenizer.decode(encoded.input_ids) == "<s>hiyo<|im_end|>"


def test_no_bos_where_the_tokenizer_does_not(byte_tokenizer):
    tokenizer = byte_tokenizer()
    assert tokenizer.bos_token_id is not None
    assert tokenizer.bos_token_id not in encode(tokenizer, "hi", "yo").input_ids


def test_no_second_end_token(byte_tokenizer):
    tokenizer = byte_tokenizer()
    assert encode(tokenizer, "hi", "yo<|im_end|>") == encode(tokenizer, "hi", "yo")


def test_a_cut_completion_has_no_end_token(byte_tokenizer):
    tokenizer = byte_tokenizer()
    whole = encode(tokenizer, "abc", "defgh")
    assert len(whole.input_ids) == 9
    assert encode(tokenizer, "abc", "defgh", limit=9) == whole
    for limit in range(4, 9):
        cut = encode(tokenizer, "abc", "defgh", limit=limit)
        assert cut.input_ids == whole.input_ids[:limit]
        assert tokenizer.eos_token_id not in cut.input_ids
        assert cut.target_mask == (False, False, False, *(True,) * (limit - 3))


def test_an_empty_completion_is_its_end_token(byte_tokenizer):
    tokenizer = byte_tokenizer()
    encoded = encode(tokenizer, "hi", "")
    assert encoded.input_ids[-1] == tokenizer.eos_token_id
    assert encoded.target_mask == (False, False, True)


def test_a_prompt_alone(byte_tokenizer):
    encoded = encode(byte_tokenizer(), "hi", None)
    assert (encoded.input_ids, encoded.target_mask) == ((), ())
    assert len(encoded.prompt_ids) == 2


def test_as_a_user_turn(byte_tokenizer):
    tokenizer = byte_tokenizer("chatml")
    encoded = encode(tokenizer, "hi", "yo", chat_template=True, system_prompt="S")
    prompt = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(encoded.prompt_ids) == prompt
    assert tokenizer.decode(encoded.input_ids[len(encoded.prompt_ids) :]) == "yo<|im_end|>"
    assert encode(tokenizer, "hi", None, chat_template=True, system_prompt="S").prompt_ids == encoded.prompt_ids


def test_refuses_a_prompt_that_leaves_no_room(byte_tokenizer):
    with pytest.raises(UserError) as error:
        encode(byte_tokenizer(), "abcde", "f", limit=5)
    assert str(error.value) == (
        "`data.path` must be prompts of fewer than 5 tokens (the smaller of data.max_length and the model's context), "
        "but is 'x.jsonl, line 3: a prompt of 5 tokens'."
    )


def test_refuses_an_empty_prompt(byte_tokenizer):
    with pytest.raises(UserError, match="prompts of at least one token"):
        encode(byte_tokenizer(), "", "yo")
    assert len(encode(byte_tokenizer(bos=True), "", "yo").prompt_ids) == 1


def test_refuses_a_completion_without_an_end_token(byte_tokenizer):
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="without an end-of-sequence token"):
        encode(tokenizer, "hi", "yo")


def test_refuses_a_system_prompt_without_a_template(byte_tokenizer):
    with pytest.raises(UserError, match=r"`data\.system_prompt` must be null unless data\.chat_template is true"):
        encode(byte_tokenizer("chatml"), "hi", "yo", system_prompt="S")
