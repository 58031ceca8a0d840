"""Codes of a batch: by token, and in one line."""

import pytest
import torch

from dictlab import Dictionary, TopK


def test_codes_are_indexed_by_token_and_print_in_one_line():
    codes = TopK(2)(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)))
    dense = codes.dense()
    for tokens in (0, -1, slice(1, 3), slice(None), slice(4, 9), slice(5, None)):
        rows = dense[[tokens]] if isinstance(tokens, int) else dense[tokens]
        assert torch.equal(codes[tokens].dense(), rows)
    with pytest.raises(IndexError):
        codes[5]
    with pytest.raises(ValueError, match="steps of 1"):
        codes[::2]
    assert repr(codes) == "<Codes of 5 tokens x 7 latents, mean L0 2>"


def test_a_dictionary_prints_in_one_line():
    weights = {"W_enc": (3, 5), "b_enc": (5,), "W_dec": (5, 3), "b_pre": (3,), "b_out": (3,)}
    dictionary = Dictionary(
        **{name: torch.zeros(shape) for name, shape in weights.items()}, activation=TopK(2), name="a"
    )
    assert repr(dictionary) == "<Dictionary 'a': 5 latents x 3, topk, k 2, float32>"
