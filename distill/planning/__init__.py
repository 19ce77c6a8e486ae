"""What a run needs, before anything is loaded: memory per rank, disk, tokens, and whether it fits."""

from distill.planning.plan import agreed_gather, choose_gather

__all__ = ["agreed_gather", "choose_gather"]
