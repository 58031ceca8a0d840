"""Which numbers is a dictionary made of? One hash of them, whatever precision they are kept in."""

from __future__ import annotations

import hashlib

import torch

from dictlab.dictionary.dictionary import Dictionary

BLOCK = 1 << 24  # numbers that are converted at once


def sha256_of_weights(dictionary: Dictionary) -> str:
    """SHA-256 of the weights and of what the activation function keeps, as float32 in the order of their rows.

    A file in half precision has the same hash whether it is read in place or loaded: in both cases it is computed with
    in float32. Tensors in a file are read a block of rows at a time.
    """
    digest = hashlib.sha256()
    for tensor in (*dict(dictionary._weights()).values(), *dictionary.activation.tensors().values()):
        rows = tensor.detach().reshape(1) if tensor.ndim == 0 else tensor.detach()
        for block in rows.split(max(1, BLOCK // max(1, rows[0].numel()))):
            numbers = block.cpu().to(torch.float32 if block.is_floating_point() else block.dtype).contiguous()
            digest.update(numbers.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
