"""Causal language models: where they come from, what they say, how they are saved."""

from distill.models.build import build, readable
from distill.models.causal_lm import CausalLM
from distill.models.vocabulary import share_vocabulary

__all__ = ["CausalLM", "build", "readable", "share_vocabulary"]
