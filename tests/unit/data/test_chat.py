from __future__ import annotations

import pytest

from distill.data.encode import Encoder, Origin
from distill.errors import UserError

ORIGIN = Origin("data.path", "x.jsonl, line 3")


def conversation(*contents, system=None):
    roles = ["user", "assistant"] * len(contents)
    turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def encode(tokenizer, messages, limit=1000, system_prompt=None):
    return Encoder(tokenizer, limit, system_prompt=system_prompt).messages(messages, ORIGIN)


def targets(tokenizer, encoded):
    """Decoded runs of targets."""
    runs, before = [], False
    for id_, target in zip(encoded.input_ids, encoded.target_mask, strict=True):
        if target:
            runs = [*runs[:-1], [*runs[-1], id_]] if before else [*runs, [id_]]
        before = target
    return [tokenizer.decode(run) for run in runs]


CASES = [
    (conversation("hi", "hello there"), ["hello there"]),
    (conversation("hi", "hello", "and the next?", "bye\nbye", "more", "ok"), ["hello", "bye\nbye", "ok"]),
    (conversation("Größe?", "naïve 日本語 🙂", system="Be brief. 🙂"), ["naïve 日本語 🙂"]),
    (conversation("repeat: assistant", "user assistant user"), ["user assistant user"]),
    (conversation("hi", ""), [""]),
    (conversation("a\r\nb", "c\r\nd"), ["c\r\nd"]),
]


@pytest.mark.parametrize(("messages", "expected"), CASES)
@pytest.mark.parametrize(("template", "end"), [("chatml", "<|im_end|>"), ("llama3", "<|eot_id|>")])
def test_targets_are_exactly_the_assistant_turns_with_their_end(byte_tokenizer, template, end, messages, expected):
    tokenizer = byte_tokenizer(template, bos=template == "llama3", eos=end)
    encoded = encode(tokenizer, messages)
    assert targets(tokenizer, encoded) == [text + end for text in expected]
    # The same tokens as the template's own rendering, but for what follows the last end token.
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    assert list(encoded.input_ids) == whole[: len(encoded.input_ids)]
    assert tokenizer.decode(whole[len(encoded.input_ids) :]).strip() == ""
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(encoded.prompt_ids) == prompt
    assert encoded.input_ids[: len(encoded.prompt_ids)] == encoded.prompt_ids
    assert not any(encoded.target_mask[: len(encoded.prompt_ids)]) or len(expected) > 1


def test_one_bos(byte_tokenizer):
    tokenizer = byte_tokenizer("llama3", bos=True, eos="<|eot_id|>")
    assert encode(tokenizer, conversation("hi", "yo")).input_ids.count(tokenizer.bos_token_id) == 1
    assert encode(tokenizer, conversation("hi")).prompt_ids.count(tokenizer.bos_token_id) == 1


def test_a_merge_across_the_prompts_end_does_not_shift_the_mask(byte_tokenizer):
    # "assistant\n" + "\nhello": tokenised together, the two line breaks are one token.
    tokenizer = byte_tokenizer("chatml")
    encoded = encode(tokenizer, conversation("hi", "\nhello", "so", "\nend"))
    assert targets(tokenizer, encoded) == ["\nhello<|im_end|>", "\nend<|im_end|>"]
    prompt = encode(tokenizer, conversation("hi")).prompt_ids
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encode(tokenizer, conversation("hi", "\nhello")).prompt_ids == prompt


def test_a_split_that_depends_on_the_next_turn(byte_tokenizer):
    # GPT-2 splits "\n\n" before a word, but not at the end of a prompt: rollouts see the latter, so training does.
    tokenizer = byte_tokenizer("llama3", bos=True, eos="<|eot_id|>", gpt2=True)
    messages = conversation("hi", "hello", "so", "end")
    encoded = encode(tokenizer, messages)
    assert targets(tokenizer, encoded) == ["hello<|eot_id|>", "end<|eot_id|>"]
    assert tokenizer.decode(encoded.input_ids) == tokenizer.apply_chat_template(messages, tokenize=False)
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert list(encode(tokenizer, messages[:2]).prompt_ids) == prompt_ids
    assert list(encoded.input_ids[: len(prompt_ids)]) == prompt_ids


def test_a_template_that_rewrites_earlier_turns(byte_tokenizer):
    tokenizer = byte_tokenizer("qwen3")
    messages = conversation("1?", "<think>\nhm\n</think>\n\none", "2?", "two", "3?", "<think>\nso\n</think>\n\nthree")
    encoded = encode(tokenizer, messages)
    assert targets(tokenizer, encoded) == [
        "one<|im_end|>",
        "two<|im_end|>",
        "<think>\nso\n</think>\n\nthree<|im_end|>",
    ]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(encoded.input_ids) == whole.removesuffix("\n")


def test_a_tokenizer_that_marks_the_beginning_of_a_text(piece_tokenizer):
    tokenizer = piece_tokenizer("llama2")
    messages = conversation("hi", "yes", "so", "a lot")
    encoded = encode(tokenizer, messages)
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    assert list(encoded.input_ids) == whole
    assert [run.strip() for run in targets(tokenizer, encoded)] == ["yes</s>", "a lot</s>"]
    assert encoded.prompt_ids == tuple(whole[: len(encoded.prompt_ids)])


def test_without_an_end_token_the_whole_turn_counts(byte_tokenizer):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    assert targets(tokenizer, encode(tokenizer, conversation("hi", "yo", "so", "ok"))) == [" yo\n", " ok\n"]


def test_a_prompt_only_conversation(byte_tokenizer):
    tokenizer = byte_tokenizer("chatml")
    encoded = encode(tokenizer, conversation("hi", "yo", "more"))
    assert (encoded.input_ids, encoded.target_mask) == ((), ())
    assert tokenizer.decode(encoded.prompt_ids).endswith(
        "yo<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
    )


def test_system_prompt_only_where_there_is_none(byte_tokenizer):
    tokenizer = byte_tokenizer("chatml")
    text = tokenizer.decode(encode(tokenizer, conversation("hi", "yo"), system_prompt="Mine.").prompt_ids)
    assert text.startswith("<|im_start|>system\nMine.<|im_end|>")
    text = tokenizer.decode(
        encode(tokenizer, conversation("hi", "yo", system="Own."), system_prompt="Mine.").prompt_ids
    )
    assert text.startswith("<|im_start|>system\nOwn.<|im_end|>")
    assert "Mine." not in text


def test_a_cut_completion_has_no_end_token(byte_tokenizer):
    tokenizer = byte_tokenizer("chatml")
    messages = conversation("hi", "x" * 50)
    whole = encode(tokenizer, messages)
    for limit in (len(whole.input_ids) - 1, len(whole.prompt_ids) + 1):
        cut = encode(tokenizer, messages, limit=limit)
        assert cut.input_ids == whole.input_ids[:limit]
        assert cut.input_ids[-1] != tokenizer.eos_token_id
        assert cut.target_mask == whole.target_mask[:limit]
        assert any(cut.target_mask)
    assert encode(tokenizer, messages, limit=len(whole.input_ids)) == whole


def test_refuses_a_prompt_that_does_not_fit(byte_tokenizer):
    tokenizer = byte_tokenizer("chatml")
    length = len(encode(tokenizer, conversation("hi", "yo")).prompt_ids)
    with pytest.raises(UserError, match=rf"line 3: a prompt of {length} tokens") as error:
        encode(tokenizer, conversation("hi", "yo"), limit=length)
    assert f"fewer than {length} tokens" in str(error.value)


def test_refuses_what_the_template_makes_of_it(byte_tokenizer):
    tokenizer = byte_tokenizer("r1")
    with pytest.raises(UserError, match="does not continue its generation prompt with message 1"):
        encode(tokenizer, conversation("hi", "yo"))
    assert tokenizer.decode(encode(tokenizer, conversation("hi")).prompt_ids).endswith("<think>\n")


def test_refuses_an_empty_mask(byte_tokenizer):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] if m['role'] == 'user' else '' }}{% endfor %}"
    with pytest.raises(UserError, match="renders an assistant turn to nothing"):
        encode(tokenizer, conversation("hi", "yo"))


def test_refuses_conversations_without_a_template(byte_tokenizer):
    with pytest.raises(UserError, match="without a chat template"):
        encode(byte_tokenizer(), conversation("hi", "yo"))


def test_names_the_templates_own_complaint(byte_tokenizer):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match="line 3: the chat template says: roles must alternate"):
        encode(tokenizer, conversation("hi", "yo"))
