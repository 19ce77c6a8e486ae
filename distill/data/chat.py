"""Assistant turns of a conversation, found by rendering prefixes with the tokenizer's chat template.

Stock templates carry no ``{% generation %}`` marks, so the mask is derived: the assistant's turn ``i`` begins where
``messages[:i]`` plus the generation prompt ends, and ends with the end-of-turn token of ``messages[:i + 1]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]


class TemplateMismatchError(ValueError):
    """The chat template refuses the conversation, or renders it so that its turns cannot be told apart."""


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], generation_prompt: bool) -> str:
    """Text of the conversation. Raises TemplateMismatchError with the template's own complaint."""
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generation_prompt)
    except TemplateError as error:
        raise TemplateMismatchError(f"the chat template says: {error}") from error
    return str(text)


def assistant_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], markers: Sequence[str]
) -> tuple[str, list[tuple[int, int]]]:
    """Rendered text and the character range of each assistant turn, end-of-turn token included, later text excluded.

    ``markers`` are the :func:`added_tokens` of the tokenizer, among which the end-of-turn token is found.

    Some templates rewrite earlier turns once the conversation goes on (Qwen3 drops their reasoning). There the end
    is the first end-of-turn token after the start. A template without a generation prompt leaves the turn's header
    inside the range, as a rollout would have to produce it.
    """
    text = render(tokenizer, messages, False)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    starts = [len(_prefix(tokenizer, messages, index, text)) for index in turns]
    last_end, end_marker = _turn_end(text, starts[-1], len(text), markers)
    ends = []
    for index, start in zip(turns[:-1], starts[:-1], strict=True):
        rendered = render(tokenizer, messages[: index + 1], False)
        if text.startswith(rendered):
            ends.append(_turn_end(text, start, len(rendered), markers)[0])
        elif end_marker and end_marker in text[start:]:
            ends.append(text.index(end_marker, start) + len(end_marker))
        else:
            raise TemplateMismatchError(f"the chat template rewrites message {index} and marks no end of turn")
    spans = list(zip(starts, [*ends, last_end], strict=True))
    edges = [edge for span in spans for edge in span]
    if any(left > right for left, right in pairwise(edges)) or any(start == end for start, end in spans):
        raise TemplateMismatchError("the chat template renders an assistant turn to nothing")
    return text, spans


def encode_cuts(tokenizer: PreTrainedTokenizerBase, text: str, cuts: Sequence[int]) -> list[list[int]]:
    """Token ids of ``text[:cuts[-1]]`` in pieces that end at the cuts (increasing).

    Every piece continues the tokens of the pieces before, as a rollout does: where tokenising the longer text would
    merge characters across a cut, the new piece is tokenised on its own. The template writes its own BOS, so no
    special tokens are added.
    """
    ranges = list(pairwise([0, *cuts]))
    pieces = [encode(tokenizer, text[start:end]) for start, end in ranges]
    if [token for piece in pieces for token in piece] == encode(tokenizer, text[: cuts[-1]]):
        return pieces
    # Either a merge across a cut, or a tokenizer that treats the beginning of a text in its own way.
    ids: list[int] = []
    for number, (_, end) in enumerate(ranges):
        whole = encode(tokenizer, text[:end])
        if whole[: len(ids)] == ids:
            pieces[number] = whole[len(ids) :]
        ids = ids + pieces[number]
    return pieces


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text as it stands, without added special tokens."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Text of the tokens that were added to the vocabulary as a whole, longest first, without white space ones."""
    contents = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    return sorted((content for content in contents if content.strip()), key=lambda content: (-len(content), content))


def _prefix(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], index: int, text: str) -> str:
    prefix = render(tokenizer, messages[:index], True)
    if not text.startswith(prefix):
        raise TemplateMismatchError(f"the chat template does not continue its generation prompt with message {index}")
    return prefix


def _turn_end(text: str, start: int, stop: int, markers: Sequence[str]) -> tuple[int, str]:
    """End of the turn in ``text[start:stop]`` and the token that marks it; without one the turn ends at ``stop``."""
    turn = text[start:stop].rstrip()
    for marker in markers:
        if turn.endswith(marker):
            return start + len(turn), marker
    return stop, ""
