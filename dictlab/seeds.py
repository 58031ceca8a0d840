"""Random numbers that are repeatable, and independent of each other where they are for different things."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str) -> torch.Generator:
    """A generator for one purpose. The same seed gives unrelated numbers for another purpose.

    Two draws from bare `manual_seed(0)` would be equal: random directions for a chance level would be the very rows
    that a dictionary of that seed was initialised with.
    """
    digest = hashlib.sha256(f"{purpose}:{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
