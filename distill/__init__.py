"""Distillation of language and vision models on Lightning, with update sparsity logged as it happens."""

__version__ = "0.1.0"
