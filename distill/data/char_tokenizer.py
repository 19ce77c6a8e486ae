"""The character tokenizer of the embedded models: ``python -m distill.data.char_tokenizer FOLDER`` writes it."""

from __future__ import annotations

import sys

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<eos>", "<unk>")
CHARACTERS = "0123456789+-*= ?"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character; text of :data:`CHARACTERS` survives encode and decode unchanged."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m distill.data.char_tokenizer FOLDER")
    build_tokenizer().save_pretrained(sys.argv[1])
