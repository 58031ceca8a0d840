"""The canonical form against its formula in NumPy, and the rewrites that must not change the function."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dictlab import DictlabError, ReLU, TopK
from dictlab import dictionary as module
from dictlab.normalisation import LayerNorm, NoNormalisation, Scale
from tests.planted import random_dictionary

CASES = [
    (activation, normalisation)
    for activation in (ReLU(), TopK(4))
    for normalisation in (NoNormalisation(), Scale(0.25), LayerNorm())
]


def by_numpy(dictionary, x):
    """z, f and x_hat, written out in float64."""
    W_enc, b_enc, W_dec, b_pre, b_out, x = (
        t.double().numpy()
        for t in (dictionary.W_enc, dictionary.b_enc, dictionary.W_dec, dictionary.b_pre, dictionary.b_out, x)
    )
    scale, shift = 1.0, 0.0
    h = x
    if isinstance(dictionary.normalisation, Scale):
        h, scale = x * dictionary.normalisation.factor, 1 / dictionary.normalisation.factor
    if isinstance(dictionary.normalisation, LayerNorm):
        shift, scale = x.mean(axis=1, keepdims=True), x.std(axis=1, ddof=1, keepdims=True)
        h = (x - shift) / (scale + 1e-5)
    z = (h - b_pre) @ W_enc + b_enc
    f = np.maximum(z, 0)
    if isinstance(dictionary.activation, TopK):
        kth = np.sort(z, axis=1)[:, -dictionary.activation.k][:, None]
        f = np.where(z >= kth, f, 0)
    return f, (f @ W_dec + b_out) * scale + shift


@pytest.mark.parametrize(("activation", "normalisation"), CASES)
def test_encode_and_decode_follow_the_formula(activation, normalisation):
    """1e-5: float32 against float64 on values of order 10."""
    dictionary = random_dictionary(activation=activation, normalisation=normalisation)
    x = 3 * torch.randn(40, 8) + 1
    f, x_hat = by_numpy(dictionary, x)
    codes = dictionary.encode(x)
    np.testing.assert_allclose(codes.dense().numpy(), f, atol=1e-5)
    assert ((codes.dense().numpy() > 0) == (f > 0)).all()
    np.testing.assert_allclose(dictionary.decode(codes, x).numpy(), x_hat, atol=1e-5)
    np.testing.assert_allclose(dictionary.reconstruct(x).numpy(), x_hat, atol=1e-5)


@pytest.mark.parametrize(("activation", "normalisation"), CASES)
def test_folding_changes_nothing_but_the_units_of_the_codes(activation, normalisation):
    dictionary = random_dictionary(activation=activation, normalisation=normalisation)
    x = 3 * torch.randn(40, 8) + 1
    for folded in (dictionary.in_input_units(), dictionary.folded()):
        torch.testing.assert_close(folded.reconstruct(x), dictionary.reconstruct(x), atol=1e-5, rtol=1e-5)
        units = getattr(normalisation, "factor", 1.0)
        torch.testing.assert_close(folded.encode(x).dense() * units, dictionary.encode(x).dense(), atol=1e-5, rtol=1e-5)
    assert not dictionary.folded().b_pre.any()
    assert torch.equal(dictionary.in_input_units().W_dec, dictionary.W_dec)


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_permuting_latents_permutes_codes_and_keeps_the_reconstruction(seed):
    dictionary = random_dictionary(seed=seed)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
    permuted = replace(
        dictionary, W_enc=dictionary.W_enc[:, order], b_enc=dictionary.b_enc[order], W_dec=dictionary.W_dec[order]
    )
    x = torch.randn(10, 8, generator=torch.Generator().manual_seed(seed + 1))
    torch.testing.assert_close(permuted.encode(x).dense(), dictionary.encode(x).dense()[:, order])
    torch.testing.assert_close(permuted.reconstruct(x), dictionary.reconstruct(x), atol=1e-5, rtol=1e-5)


def test_leading_dimensions_are_kept_by_reconstruct_and_flattened_by_encode():
    dictionary = random_dictionary()
    x = torch.randn(2, 5, 8)
    assert dictionary.reconstruct(x).shape == x.shape
    assert dictionary.encode(x).n_tokens == 10
    assert torch.equal(dictionary.reconstruct(x).flatten(0, 1), dictionary.reconstruct(x.flatten(0, 1)))


def test_encoding_in_blocks_gives_what_encoding_at_once_gives(monkeypatch):
    dictionary, x = random_dictionary(), torch.randn(50, 8)
    whole = dictionary.encode(x).dense()
    monkeypatch.setattr(module, "BLOCK", 24 * 7)
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(x).dense(), whole, atol=1e-6, rtol=1e-6)


def test_no_tokens_are_no_trouble():
    dictionary = random_dictionary()
    with torch.no_grad():
        assert dictionary.reconstruct(torch.zeros(0, 8)).shape == (0, 8)
        assert dictionary.encode(torch.zeros(0, 8)).n_tokens == 0


def test_a_wrong_width_is_named_with_both_widths():
    with pytest.raises(DictlabError, match=r"width 8.*given 9"):
        random_dictionary().encode(torch.zeros(3, 9))


def test_decoding_needs_the_inputs_where_the_normalisation_is_by_token():
    dictionary = random_dictionary(normalisation=LayerNorm())
    with pytest.raises(DictlabError, match="layer_norm"):
        dictionary.decode(dictionary.encode(torch.randn(3, 8)))


def test_directions_have_unit_length_and_zero_rows_stay_zero():
    dictionary = random_dictionary()
    dictionary = replace(dictionary, W_dec=torch.cat([3 * dictionary.W_dec[:-1], torch.zeros(1, 8)]))
    norms = dictionary.directions.norm(dim=1)
    torch.testing.assert_close(norms[:-1], torch.ones(23))
    assert norms[-1] == 0
    assert dictionary.alive.sum() == 23


def test_alive_latents_are_those_with_a_firing_rate():
    dictionary = replace(random_dictionary(), firing_rate=torch.arange(24) * 0.01)
    assert not dictionary.alive[0] and dictionary.alive[1:].all()


def test_weights_move_and_change_precision_together():
    half = random_dictionary().to(dtype=torch.float64)
    assert {t.dtype for _, t in half._weights()} == {torch.float64}
