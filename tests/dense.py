"""Formulas of other libraries, written out densely in float64, and whether a dictionary agrees with them."""

import re

import numpy as np
import pytest
import torch

from dictlab import Dictionary, DictlabError

# Values here are of order 1, so float32 rounds sums of some tens of them at about 1e-6.
TOLERANCE = 1e-5


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def relu(z: np.ndarray) -> np.ndarray:
    return np.maximum(z, 0)


def largest(z: np.ndarray, k: int) -> np.ndarray:
    """z where it is among the k largest of its row, 0 elsewhere."""
    kept = np.argsort(-z, axis=1, kind="stable")[:, :k]
    out = np.zeros_like(z)
    np.put_along_axis(out, kept, np.take_along_axis(z, kept, axis=1), axis=1)
    return out


def layer_norm(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The input centred and divided by its deviation (n - 1) plus 1e-5; the mean; the deviation without 1e-5."""
    mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
    return (x - mean) / (std + 1e-5), mean, std


def agrees(dictionary: Dictionary, x: np.ndarray, f: np.ndarray, x_hat: np.ndarray, tolerance: float = TOLERANCE):
    """The same latents are active, as strongly, and the reconstruction is the same."""
    codes, reconstruction = dictionary(torch.from_numpy(x))
    dense = codes.dense().numpy()
    assert np.array_equal(dense != 0, f != 0)
    assert 0 < (f != 0).sum() < f.size
    np.testing.assert_allclose(dense, f, atol=tolerance, rtol=0)
    np.testing.assert_allclose(reconstruction.numpy(), x_hat, atol=tolerance, rtol=0)


def refused(*needles: str):
    """One line that holds all of this."""
    lookaheads = "".join(f"(?=.*{re.escape(str(needle))})" for needle in needles)
    return pytest.raises(DictlabError, match=rf"\A{lookaheads}[^\n]*\Z")
