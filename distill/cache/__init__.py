"""What a teacher says about a fixed set of texts, written once and read by any number of runs (docs/cache.md)."""

HEAD = "head.safetensors"
"""Beside hidden states: the output embedding that turns them into logits, with its scale and cap."""
