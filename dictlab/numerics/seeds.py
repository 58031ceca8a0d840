"""Random numbers that are repeatable, and independent of each other where they are for different things."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def generator(seed: int, purpose: str) -> torch.Generator:
    """A generator for one purpose. The same seed gives unrelated numbers for another purpose.

    Two draws from bare `manual_seed(0)` would be equal: random directions for a chance level would be the very rows
    that a dictionary of that seed was initialised with.
    """
    return torch.Generator().manual_seed(int.from_bytes(_digest(seed, purpose)[:7], "big"))


def numpy_generator(seed: int, purpose: str) -> np.random.Generator:
    """`generator` for NumPy's random numbers."""
    return np.random.default_rng(int.from_bytes(_digest(seed, purpose)[:8], "big"))


def _digest(seed: int, purpose: str) -> bytes:
    return hashlib.sha256(f"{purpose}:{seed}".encode()).digest()
