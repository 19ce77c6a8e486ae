"""From text to the token ids, mask and prompt of one sample. Shared by all sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from distill.data import chat
from distill.errors import UserError


class TooLongError(UserError):
    """A prompt that does not fit into a model's context, or into ``data.max_length``."""


@dataclass(frozen=True)
class Origin:
    """Names a sample in error messages: the configuration key it comes from and its place there."""

    key: str
    place: str

    def error(self, found: str, allowed: str) -> UserError:
        return UserError(self.key, f"{self.place}: {found}", allowed)

    def too_long(self, found: str, allowed: str) -> TooLongError:
        return TooLongError(self.key, f"{self.place}: {found}", allowed)


class Encoded(NamedTuple):
    """Fields of a :class:`distill.types.Sample`; the last two are empty for a prompt without completion."""

    prompt_ids: tuple[int, ...]
    input_ids: tuple[int, ...]
    target_mask: tuple[bool, ...]


def answering(text: str) -> chat.Message:
    """A turn of the assistant."""
    return {"role": "assistant", "content": text}


@dataclass(frozen=True)
class Encoder:
    """Turns prompts, completions and conversations into token ids of at most ``limit`` tokens.

    ``chat_template`` wraps plain prompts as a user turn; ``system_prompt`` goes before conversations that have no
    system turn of their own.
    """

    tokenizer: PreTrainedTokenizerBase
    limit: int
    chat_template: bool = False
    system_prompt: str | None = None

    def text(self, prompt: str, completion: str | None, origin: Origin) -> Encoded:
        """A prompt and, unless None, the completion that ends with the end-of-sequence token.

        Raises UserError for a prompt that is empty or does not fit, or a tokenizer that lacks what is needed.
        """
        if self.chat_template:
            return self.messages(self.row(prompt, completion)["messages"], origin)
        if self.system_prompt is not None:
            raise UserError("data.system_prompt", self.system_prompt, "null unless data.chat_template is true")
        prompt_ids = self._leading_bos(prompt) + chat.encode(self.tokenizer, prompt)
        if completion is None:
            return self._fit(prompt_ids, [], [], origin)
        completion_ids = chat.encode(self.tokenizer, completion)
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise origin.error("a completion", "prompts only, for a tokenizer without an end-of-sequence token")
        if completion_ids[-1:] != [eos]:
            completion_ids.append(eos)
        mask = [False] * len(prompt_ids) + [True] * len(completion_ids)
        return self._fit(prompt_ids, prompt_ids + completion_ids, mask, origin)

    def messages(self, messages: Sequence[chat.Message], origin: Origin) -> Encoded:
        """A conversation. Targets are the assistant's turns; one that ends with another role is a prompt only.

        Raises UserError where the template is missing or does not suit, or where no target is left.
        """
        if self.tokenizer.chat_template is None:
            raise origin.error("a conversation", "prompts and completions, for a tokenizer without a chat template")
        messages = self.opened(messages)
        try:
            if messages[-1]["role"] != "assistant":
                prompt = chat.render(self.tokenizer, messages, True)
                return self._fit(chat.encode(self.tokenizer, prompt), [], [], origin)
            text, spans = chat.assistant_spans(self.tokenizer, messages, self._markers)
        except chat.TemplateMismatchError as error:
            raise origin.error(str(error), "conversations that suit the tokenizer's chat template") from error
        pieces = chat.encode_cuts(self.tokenizer, text, [edge for span in spans for edge in span])
        ids = [token for piece in pieces for token in piece]
        mask = [bool(number % 2) for number, piece in enumerate(pieces) for _ in piece]
        if not any(mask):
            raise origin.error("no target", "conversations with something of the assistant to learn")
        return self._fit(ids[: len(ids) - len(pieces[-1])], ids, mask, origin)

    def row(self, prompt: str, completion: str | None) -> dict[str, Any]:
        """A prompt and its completion as a row of a file that is encoded the same without this encoder's settings."""
        if not self.chat_template:
            return {"prompt": prompt} if completion is None else {"prompt": prompt, "completion": completion}
        turns = [{"role": "user", "content": prompt}]
        return {"messages": self.opened(turns if completion is None else [*turns, answering(completion)])}

    def opened(self, messages: Sequence[chat.Message]) -> list[chat.Message]:
        """The conversation with ``system_prompt`` before it, unless it has a system turn of its own."""
        if self.system_prompt is None or messages[0]["role"] == "system":
            return list(messages)
        return [{"role": "system", "content": self.system_prompt}, *messages]

    @cached_property
    def _markers(self) -> list[str]:
        return chat.added_tokens(self.tokenizer)

    @cached_property
    def _adds_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and bool(self.tokenizer("")["input_ids"][:1] == [bos])

    def _leading_bos(self, prompt: str) -> list[int]:
        if not self._adds_bos or prompt.startswith(str(self.tokenizer.bos_token)):
            return []
        return [self.tokenizer.bos_token_id]

    def _fit(self, prompt_ids: list[int], ids: list[int], mask: list[bool], origin: Origin) -> Encoded:
        """Cuts what is too long: the end token goes with the rest, for such a completion did not end here."""
        if not prompt_ids:
            raise origin.error("a prompt of 0 tokens", "prompts of at least one token")
        if len(prompt_ids) >= self.limit:
            raise origin.too_long(
                f"a prompt of {len(prompt_ids)} tokens",
                f"prompts of fewer than {self.limit} tokens (the smaller of data.max_length and the model's context)",
            )
        return Encoded(tuple(prompt_ids), tuple(ids[: self.limit]), tuple(mask[: self.limit]))
