"""Sparsity curves: k and thresholds against counting, codes as they were, and what cannot be made denser."""

from dataclasses import replace

import pytest
import torch

from analyses.pool.dictionary_pool import pool_of
from analyses.pool.sparsity_levels import at_l0
from dictlab import DictlabError, ReLU, TopK
from dictlab.dictionary.activation_functions import AbsTopK, BatchTopK, GroupMax, JumpReLU
from dictlab.dictionary.normalisation import Scale
from tests.dictionary.test_activation_functions import gated, jumprelu
from tests.planted import random_dictionary

X = 2 * torch.randn(400, 8, generator=torch.Generator().manual_seed(0)) + 1


def l0(dictionary) -> float:
    return float((dictionary.encode(X).dense() != 0).sum(dim=1).double().mean())


@pytest.mark.parametrize("kind", [TopK, AbsTopK, BatchTopK])
@pytest.mark.parametrize("wanted", [2, 6.4, 9, 100])
def test_of_ranked_latents_as_many_are_kept_as_the_nearest_whole_number(kind, wanted):
    dictionary = replace(random_dictionary(24, 8, activation=kind(5)), b_enc=torch.full((24,), 50.0))  # all positive
    assert l0(at_l0(dictionary, wanted, X)) == min(24, round(wanted))


@pytest.mark.parametrize("normalisation", [None, Scale(0.3)])
@pytest.mark.parametrize("share", [0.3, 0.8])
@pytest.mark.parametrize("kind", [ReLU(), jumprelu(24, 1), gated(24, 1)])
def test_above_higher_thresholds_are_as_many_latents_as_can_be_below_what_is_asked_for(kind, share, normalisation):
    """Each value that is left is what it was, and one firing more would be too many."""
    dictionary = random_dictionary(24, 8, activation=kind, normalisation=normalisation).in_input_units()
    before, wanted = dictionary.encode(X).dense(), share * l0(dictionary)
    after = at_l0(dictionary, wanted, X).encode(X).dense()
    kept = after != 0
    torch.testing.assert_close(after[kept], before[kept], atol=1e-4, rtol=1e-4)
    assert wanted - 1.5 / len(X) <= float(kept.sum()) / len(X) <= wanted


def test_positive_thresholds_are_scaled_alike_up_and_down():
    threshold = torch.linspace(0.5, 3.0, 24)
    dictionary = random_dictionary(24, 8, activation=JumpReLU(threshold))
    for share in (0.5, 1.3):
        level = at_l0(dictionary, share * l0(dictionary), X)
        factors = level.activation.threshold / threshold
        torch.testing.assert_close(factors, factors[:1].expand(24))
        assert (factors[0] < 1) == (share > 1) and l0(level) == pytest.approx(share * l0(dictionary), abs=0.01)
    assert not at_l0(dictionary, 1000.0, X).activation.threshold.any()


@pytest.mark.parametrize("kind", [ReLU(), JumpReLU(torch.zeros(24)), gated(24, 1)])
def test_latents_without_a_threshold_cannot_be_made_denser(kind):
    dictionary = random_dictionary(24, 8, activation=kind)
    denser = at_l0(dictionary, 2 * l0(dictionary), X)
    torch.testing.assert_close(denser.encode(X).dense(), dictionary.encode(X).dense(), atol=1e-4, rtol=1e-4)


def test_the_parts_of_a_union_keep_their_shares():
    pool = pool_of([random_dictionary(24, 8, seed=1), random_dictionary(30, 8, seed=2, activation=ReLU())])
    before, after = (d.encode(X).dense() != 0 for d in (pool, at_l0(pool, 0.5 * l0(pool), X)))
    for part in (slice(24), slice(24, None)):
        assert float(after[:, part].sum()) == pytest.approx(0.5 * float(before[:, part].sum()), rel=0.02)


def test_its_own_sparsity_is_the_dictionary_itself_and_a_rule_without_one_is_refused():
    dictionary = random_dictionary(24, 8, activation=jumprelu(24, 1))
    assert at_l0(dictionary, l0(dictionary), X, name="other").activation is dictionary.activation
    with pytest.raises(DictlabError, match="groupmax"):
        at_l0(random_dictionary(24, 8, activation=GroupMax(6)), 3, X)


def test_levels_of_equal_functions_are_equal():
    """Encoders rescaled against decoders, of latents without a threshold."""
    plain = random_dictionary(24, 8, activation=ReLU())
    factors = torch.logspace(-2, 2, 24).roll(7)
    W_enc, W_dec = plain.W_enc * factors, plain.W_dec / factors[:, None]
    other = replace(plain, W_enc=W_enc, b_enc=plain.b_enc * factors, W_dec=W_dec)
    one, other = (at_l0(d, 0.5 * l0(plain), X) for d in (plain, other))
    torch.testing.assert_close(other.encode(X).dense() / factors, one.encode(X).dense(), rtol=1e-4, atol=1e-5)
    assert 0.4 * l0(plain) < l0(one) <= 0.5 * l0(plain)
