"""CE and KL of single insertions, against one spliced forward of the whole model a latent."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from analyses.composition.insertion.insertion_effects import insertion_effects
from analyses.composition.insertion.insertion_in_model import change, insertion_behaviour
from dictlab import ReLU, TopK
from dictlab.data.text import Text
from dictlab.dictionary.normalisation import LayerNorm, NoNormalisation
from dictlab.evaluation.evaluate import evaluate
from tests.planted import SITE, random_dictionary, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def sequences():
    return torch.randint(1, 97, (7, 20), generator=torch.Generator().manual_seed(0))


def pair(activation, normalisation):
    options = {"activation": activation, "normalisation": normalisation}
    return random_dictionary(12, 16, seed=1, **options), random_dictionary(30, 16, seed=2, **options)


def spliced(model, sequences, clean, x_hat):
    """Sums over a sequence of CE and KL with x_hat at the site."""
    log_q = model.splice(sequences, SITE, x_hat).logits.log_softmax(-1).double()
    log_p = clean.log_softmax(-1).double()
    ce = -log_q[:, :-1].gather(-1, sequences[:, 1:, None])[..., 0]
    return ce.sum(1), (log_p.exp() * (log_p - log_q)).sum(-1).sum(1)


@pytest.mark.parametrize("activation", [ReLU(), TopK(3)])
@pytest.mark.parametrize("normalisation", [NoNormalisation(), LayerNorm()])
@torch.no_grad()
def test_changes_are_those_of_one_spliced_forward_a_latent(model, sequences, activation, normalisation, monkeypatch):
    monkeypatch.setattr(
        "analyses.composition.insertion.insertion_in_model.FORWARD_TOKENS", 60
    )  # several batches, several groups of versions
    small, large = pair(activation, normalisation)
    latents = [5, 0, 17, 29, 3]
    found = insertion_behaviour(small, large, latents, model, sequences)
    x = model.capture(sequences, SITE)[SITE]
    clean = model.forward(sequences).logits
    x_hat = small.reconstruct(x)
    codes = large.encode(x).dense().view(7, 20, 30)
    scale = torch.as_tensor(large.normalisation(x.flatten(0, 1))[1].scale)
    scale = scale.view(7, 20, 1) if scale.numel() > 1 else scale
    ce, kl = spliced(model, sequences, clean, x_hat)
    for column, latent in enumerate(latents):
        added = x_hat + scale * codes[:, :, latent, None] * large.W_dec[latent]
        ce_with, kl_with = spliced(model, sequences, clean, added)
        squared = ((x - added).double().square() - (x - x_hat).double().square()).sum((1, 2))
        for name, expected in (("CE", ce_with - ce), ("KL", kl_with - kl), ("squared error", squared)):
            np.testing.assert_allclose(found.sums[name][:, column], expected, rtol=1e-3, atol=2e-4, err_msg=name)
        assert found.sums["firings"][:, column].tolist() == (codes[:, :, latent] != 0).sum(1).tolist()
    np.testing.assert_allclose(found.sums["KL of SMALL"][:, 0], kl, rtol=1e-3, atol=1e-4)


def test_the_change_in_mse_is_the_one_pass_effect(model, sequences):
    small, large = pair(TopK(3), NoNormalisation())
    effects = insertion_effects(small, large, [model.capture(sequences, SITE)[SITE]])
    found = insertion_behaviour(small, large, range(30), model, sequences)
    np.testing.assert_allclose(found.value(change("MSE")), effects.change, rtol=1e-5, atol=1e-8)


def test_smalls_own_damage_is_what_evaluate_measures(model, tmp_path):
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog.\n" * 2000)
    text = Text.files(tmp_path / "text.txt")
    small, large = pair(TopK(3), NoNormalisation())
    (expected,) = evaluate([small], model, text, contexts=6, context=32)
    held = text.sample(model.tokenizer, 32, 6, seed=0)
    found = insertion_behaviour(small, large, [0], model, held)
    assert found.value(lambda s: s["KL of SMALL"] / s["tokens"]) == pytest.approx(expected.value("kl"), rel=1e-5)
    own = found.value(lambda s: s["CE of SMALL"] / s["predicted"])
    assert own == pytest.approx(expected.value("ce_increase"), rel=1e-4)


def test_a_silent_latent_changes_nothing_and_costs_no_forward(model, sequences, monkeypatch):
    small, large = pair(ReLU(), NoNormalisation())
    large = replace(large, b_enc=torch.full((30,), -1e6))
    carried = []
    carry = type(model).final_residual
    monkeypatch.setattr(
        type(model), "final_residual", lambda self, x, *a, **k: carried.append(len(x)) or carry(self, x, *a, **k)
    )
    found = insertion_behaviour(small, large, [1, 2], model, sequences)
    for what in ("MSE", "CE", "KL"):
        assert (found.value(change(what)) == 0).all()
    assert (found.sums["firings"] == 0).all()
    assert sum(carried) == len(sequences), "SMALL once a sequence, and nothing more"


def test_intervals_are_paired_over_sequences(model, sequences):
    """With one and the same change in every sequence there is no spread, however the sequences themselves differ."""
    small, large = pair(ReLU(), NoNormalisation())
    same = sequences[:1].repeat(6, 1)
    found = insertion_behaviour(small, large, [4], model, same)
    low, high = found.interval(change("KL"))
    np.testing.assert_allclose([low[0], high[0]], found.value(change("KL"))[0], rtol=1e-6)
    single = insertion_behaviour(small, large, [4], model, sequences[:1])
    assert np.isnan(single.interval(change("KL"))).all()
