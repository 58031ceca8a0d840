"""The canonical form against its formula in NumPy, and the rewrites that must not change the function."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dictlab import DictlabError
from dictlab.dictionary.activation_functions import BatchTopK
from dictlab.dictionary.kernels import sparse
from dictlab.dictionary.normalisation import Centred, ConstantNorm, LayerNorm, NoNormalisation, Scale
from tests.dictionary.test_activation_functions import dense, every
from tests.planted import random_dictionary

PLAIN = (NoNormalisation(), Scale(0.25), LayerNorm(), ConstantNorm())
NORMALISATIONS = (*PLAIN, *(Centred(inner) for inner in PLAIN))
ACTIVATIONS = every(24, 4, 0)
cases = pytest.mark.parametrize(
    ("activation", "normalisation"), [(activation, normalisation) for activation in ACTIVATIONS for normalisation in NORMALISATIONS]
)  # fmt: skip


def by_numpy(dictionary, x):
    """f and x_hat, written out in float64."""
    W_enc, b_enc, W_dec, b_pre, b_out, x = (
        t.double().numpy()
        for t in (dictionary.W_enc, dictionary.b_enc, dictionary.W_dec, dictionary.b_pre, dictionary.b_out, x)
    )
    scale, shift, inner, h = 1.0, 0.0, dictionary.normalisation, x
    if isinstance(inner, Centred):
        shift, inner = x.mean(axis=1, keepdims=True), inner.then
        h = x - shift
    if isinstance(inner, Scale):
        h, scale = h * inner.factor, 1 / inner.factor
    if isinstance(inner, LayerNorm):
        shift, scale = x.mean(axis=1, keepdims=True), x.std(axis=1, ddof=1, keepdims=True)
        h = (x - shift) / (scale + 1e-5)
    if isinstance(inner, ConstantNorm):
        scale = np.linalg.norm(h, axis=1, keepdims=True) / np.sqrt(x.shape[1])
        h = h / scale
    f = dense(dictionary.activation, torch.from_numpy((h - b_pre) @ W_enc + b_enc)).numpy()
    return f, (f @ W_dec + b_out) * scale + shift


@cases
def test_encode_and_decode_follow_the_formula(activation, normalisation):
    """1e-5: float32 against float64 on values of order 10."""
    dictionary = random_dictionary(activation=activation, normalisation=normalisation)
    x = 3 * torch.randn(40, 8, generator=torch.Generator().manual_seed(5)) + 1
    f, x_hat = by_numpy(dictionary, x)
    codes = dictionary.encode(x)
    np.testing.assert_allclose(codes.dense().numpy(), f, atol=1e-5, rtol=1e-5)
    assert ((codes.dense().numpy() != 0) == (f != 0)).all()
    np.testing.assert_allclose(dictionary.decode(codes, x).numpy(), x_hat, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(dictionary.reconstruct(x).numpy(), x_hat, atol=1e-5, rtol=1e-5)


@cases
def test_folding_changes_nothing_but_the_units_of_the_codes(activation, normalisation):
    dictionary = random_dictionary(activation=activation, normalisation=normalisation)
    x = 3 * torch.randn(40, 8, generator=torch.Generator().manual_seed(5)) + 1
    units = getattr(getattr(normalisation, "then", normalisation), "factor", 1.0)
    for folded in (dictionary.in_input_units(), dictionary.folded()):
        torch.testing.assert_close(folded.reconstruct(x), dictionary.reconstruct(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(folded.encode(x).dense() * units, dictionary.encode(x).dense(), atol=1e-5, rtol=1e-5)
    assert not dictionary.folded().b_pre.any()
    assert torch.equal(dictionary.in_input_units().W_dec, dictionary.W_dec)


@cases
def test_without_its_centring_a_dictionary_has_the_same_codes_and_leaves_out_the_mean_alone(activation, normalisation):
    dictionary = random_dictionary(activation=activation, normalisation=normalisation)
    if normalisation != Centred():
        assert dictionary.uncentred() is dictionary
        return
    x = 3 * torch.randn(40, 8, generator=torch.Generator().manual_seed(5)) + 1
    plain = dictionary.uncentred()
    assert plain.normalisation == NoNormalisation()
    torch.testing.assert_close(plain.encode(x).dense(), dictionary.encode(x).dense(), atol=1e-5, rtol=1e-5)
    whole = plain.reconstruct(x) + x.mean(dim=1, keepdim=True)
    torch.testing.assert_close(whole, dictionary.reconstruct(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalisation", PLAIN)
def test_centring_makes_a_dictionary_blind_to_a_constant_that_comes_back(normalisation):
    """On centred activations nothing changes; adding c to all coordinates leaves the codes, and adds c."""
    dictionary = random_dictionary(normalisation=normalisation)
    centred = replace(dictionary, normalisation=Centred(normalisation))
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(5))
    x = x - x.mean(dim=1, keepdim=True)
    torch.testing.assert_close(centred.reconstruct(x), dictionary.reconstruct(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(centred.encode(x + 3).dense(), dictionary.encode(x).dense(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(centred.reconstruct(x + 3), dictionary.reconstruct(x) + 3, atol=1e-4, rtol=1e-4)


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


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.kind)
def test_encoding_in_blocks_gives_what_encoding_at_once_gives(monkeypatch, activation):
    """Where codes depend on the batch, no blocks are made of it."""
    dictionary, x = random_dictionary(activation=activation), torch.randn(50, 8)
    whole = dictionary.encode(x).dense()
    monkeypatch.setattr(sparse, "BLOCK", 24 * 7)
    monkeypatch.setattr(sparse, "ROWS", 1)
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(x).dense(), whole, atol=1e-6, rtol=1e-6)


@cases
def test_no_tokens_are_no_trouble(activation, normalisation):
    dictionary = random_dictionary(activation=activation, normalisation=normalisation)
    with torch.no_grad():
        assert dictionary.reconstruct(torch.zeros(0, 8)).shape == (0, 8)
        assert dictionary.encode(torch.zeros(0, 8)).n_tokens == 0


def test_a_wrong_width_is_named_with_both_widths():
    with pytest.raises(DictlabError, match=r"width 8.*given 9"):
        random_dictionary().encode(torch.zeros(3, 9))


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_decoding_needs_the_inputs_where_the_normalisation_is_by_token(normalisation):
    dictionary, x = random_dictionary(normalisation=normalisation), torch.randn(3, 8)
    if not normalisation.per_token:
        torch.testing.assert_close(dictionary.decode(dictionary.encode(x)), dictionary.reconstruct(x))
        return
    with pytest.raises(DictlabError, match=normalisation.kind):
        dictionary.decode(dictionary.encode(x))


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


@cases
def test_weights_move_and_change_precision_together(activation, normalisation):
    """Those of the activation function keep their own precision: a rounded threshold is another one."""
    single = random_dictionary(activation=activation, normalisation=normalisation)
    double = single.to("cpu", torch.float64)
    assert {t.dtype for _, t in double._weights()} == {torch.float64}
    assert {n: t.dtype for n, t in double.activation.tensors().items()} == {
        n: t.dtype for n, t in activation.tensors().items()
    }
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(5))
    f, x_hat = by_numpy(single, x)
    np.testing.assert_allclose(double.encode(x.double()).dense().numpy(), f, atol=1e-12)
    np.testing.assert_allclose(double.reconstruct(x.double()).numpy(), x_hat, atol=1e-12)


def test_the_tensors_of_the_activation_function_move_along():
    for activation in ACTIVATIONS:
        moved = random_dictionary(activation=activation).to("meta").activation
        assert {t.device.type for t in moved.tensors().values()} <= {"meta"}, activation.kind
        assert moved.record() == activation.record()


def test_a_token_is_not_encoded_with_its_neighbours_unless_the_rule_says_so():
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(5))
    for activation in (a for a in ACTIVATIONS if not a.batchwise or a == BatchTopK(4)):
        dictionary = random_dictionary(activation=activation)
        alone = torch.cat([dictionary.encode(row).dense() for row in x.split(1)])
        assert torch.allclose(alone, dictionary.encode(x).dense(), atol=1e-5) == (not activation.batchwise)
