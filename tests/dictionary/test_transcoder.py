"""Transcoders and linear skips: the formula written plainly, and what rewriting leaves as it is."""

from dataclasses import replace

import pytest
import torch

from dictlab import DictlabError, ReLU
from dictlab.dictionary.activation_functions import JumpReLU, TopK
from dictlab.dictionary.describe import describe
from dictlab.dictionary.hashing import sha256_of_weights
from dictlab.dictionary.normalisation import Centred, LayerNorm, NoNormalisation, Scale
from tests.planted import random_dictionary, random_transcoder

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
NORMALISATIONS = [NoNormalisation(), Scale(3.0), LayerNorm(), Centred(Scale(0.5)), Centred()]


def plainly(t, x):
    """relu or JumpReLU codes, and the output: the input normalisation is not undone."""
    h = t.normalisation(x)[0]
    z = (h - t.b_pre) @ t.W_enc + t.b_enc
    threshold = getattr(t.activation, "threshold", torch.zeros(t.n_latents))
    f = z * (z > threshold.clamp(min=0))
    return f, f @ t.W_dec + t.b_out + (0 if t.W_skip is None else x @ t.W_skip)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("skip", [True, False])
def test_a_transcoder_is_its_formula(normalisation, skip):
    t = random_transcoder(activation=ReLU(), normalisation=normalisation, skip=skip)
    f, y = plainly(t, X)
    codes, predicted = t(X)
    assert predicted.shape == (3, 5, 6) and (t.d_in, t.d_out) == (8, 6)
    torch.testing.assert_close(codes.dense(), f.flatten(0, 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(predicted, y, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(t.decode(codes, X), y.flatten(0, 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(t.codes_in_input_units(codes, X).values, codes.values)


def test_a_skip_of_an_autoencoder_has_the_input_as_it_is_given():
    d = replace(random_dictionary(activation=ReLU(), normalisation=LayerNorm()), W_skip=torch.randn(8, 8))
    without = replace(d, W_skip=None)
    torch.testing.assert_close(d.reconstruct(X), without.reconstruct(X) + X @ d.W_skip)
    assert not d.plain and without.plain and not d.transcodes


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("activation", [ReLU(), TopK(4), JumpReLU(torch.rand(24))])
def test_folding_leaves_predictions_as_they_are(normalisation, activation):
    t = random_transcoder(activation=activation, normalisation=normalisation)
    inner = normalisation.then if isinstance(normalisation, Centred) else normalisation
    units = inner.factor if isinstance(inner, Scale) else 1.0
    for folded in (t.in_input_units(), t.folded()):
        torch.testing.assert_close(folded.reconstruct(X), t.reconstruct(X), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(folded.encode(X).dense() * units, t.encode(X).dense(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(t.uncentred().reconstruct(X), t.reconstruct(X), atol=1e-4, rtol=1e-5)
    if normalisation == Centred():
        assert t.uncentred().normalisation == NoNormalisation()


def test_decoding_asks_for_the_input_only_where_a_skip_needs_it():
    t = random_transcoder(normalisation=LayerNorm(), skip=False)
    torch.testing.assert_close(t.decode(t.encode(X)), t.reconstruct(X).flatten(0, 1))
    with pytest.raises(DictlabError, match="skips the latents"):
        random_transcoder().decode(random_transcoder().encode(X))


def test_words_name_both_sites_and_the_hash_knows_the_skip():
    t = random_transcoder()
    assert "24 latents x 8 to 6" in repr(t)
    assert "linear skip, reads blocks.1.ln2.hook_out, writes blocks.1.hook_mlp_out of an unknown model" in repr(t)
    rows = dict(describe(t))
    assert (rows["reads"], rows["writes"]) == ("blocks.1.ln2.hook_out", "blocks.1.hook_mlp_out") and "site" not in rows
    assert "W_skip" in rows["linear skip"] and rows["shape"] == "24 latents x 8 to 6"
    unnamed = random_transcoder(writes=None)
    assert "writes a site that its file does not name" in repr(unnamed)
    assert dict(describe(unnamed))["writes"] == "not recorded"
    assert sha256_of_weights(t) != sha256_of_weights(replace(t, W_skip=2 * t.W_skip))
