"""Sparsity of downstream effects: closed forms, and ablations against whole forwards of the model."""

import math

import pytest
import torch

from analyses import ablation
from analyses.ablation import sparsity
from dictlab import Metadata, TopK
from dictlab.errors import DictlabError
from tests.planted import SITE, many_documents, random_dictionary, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return many_documents(tmp_path_factory.mktemp("text"))


def test_an_effect_on_one_logit_has_the_least_sparsity_there_is():
    v = torch.zeros(2, 16, 101)
    v[0, 3, 7], v[1, 0, 0] = -5.0, 0.01
    assert sparsity(v).tolist() == pytest.approx([1 / (16 * 101)] * 2)


def test_effects_on_m_logits_alike_are_spread_over_m():
    v = torch.zeros(16, 101)
    v[:, :25] = 2.0
    assert float(sparsity(v)) == pytest.approx(25 / 101)


def test_normal_noise_is_spread_over_two_over_pi_of_the_logits():
    v = torch.randn(4, 16, 5001, generator=torch.Generator().manual_seed(0))
    assert sparsity(v).tolist() == pytest.approx([2 / math.pi] * 4, abs=0.01)


def test_a_shift_of_all_logits_of_a_position_is_no_effect():
    v = torch.randn(16, 101, generator=torch.Generator().manual_seed(1))
    shifted = v + torch.randn(16, 1, generator=torch.Generator().manual_seed(2))
    assert float(sparsity(shifted)) == pytest.approx(float(sparsity(v)), rel=1e-5)
    assert math.isnan(float(sparsity(torch.ones(16, 101))))


def test_every_latent_ablated_equals_a_whole_forward_without_it(model, text):
    dictionary = random_dictionary(40, 16, activation=TopK(4), metadata=Metadata(site=SITE))
    report = ablation([dictionary], model=model, text=text, tokens=3, latents=8, follow=5)
    frame = report.tables["effects"].frame
    tokens = text.as_split("heldout").sample(model.tokenizer, 32, 3, seed=0)
    latents = frame[frame["kind"] == "latent"]
    assert set(latents.groupby("sequence").size()) <= {1, 2, 3, 4} and len(latents)
    for row in latents.to_dict("records"):
        own = tokens[row["sequence"]][None]
        x = model.capture(own, SITE)[SITE]
        codes = dictionary.encode(x[0]).dense()
        without = x.clone()
        without[0, row["position"]] -= codes[row["position"], row["which"]] * dictionary.W_dec[row["which"]]
        difference = (model.splice(own, SITE, without).logits - model.forward(own).logits)[0]
        here = difference[row["position"] : row["position"] + 5]
        assert row["activation"] == pytest.approx(float(codes[row["position"], row["which"]]), rel=1e-5)
        assert row["sparsity"] == pytest.approx(float(sparsity(here)), rel=1e-3)


def test_random_directions_are_as_long_and_channels_stand_beside(model, text):
    dictionary = random_dictionary(40, 16, activation=TopK(4))
    report = ablation([dictionary], model=model, text=text, tokens=6, latents=2, follow=4)
    frame, overview = report.tables["effects"].frame, report.tables["overview"].frame
    counts = frame.groupby("kind").size()
    assert counts["latent"] == counts["random direction"] <= 12 and counts["residual channel"] == 12
    assert overview["features"].tolist() == ["random", f"channels at {SITE}"]
    assert overview["sparsity low"][0] <= overview["sparsity"][0] <= overview["sparsity high"][0]


def test_a_dictionary_of_which_nothing_fires_has_no_sparsity(model, text):
    from dataclasses import replace

    silent = replace(random_dictionary(40, 16, activation=TopK(4)), b_enc=torch.full((40,), -1e4))
    report = ablation([silent], model=model, text=text, tokens=3, follow=4)
    assert math.isnan(report.tables["overview"].frame["sparsity"][0])


def test_more_positions_than_the_context_holds_are_refused(model, text):
    with pytest.raises(DictlabError, match="1 to 31 have a token before"):
        ablation([random_dictionary(40, 16)], model=model, text=text, follow=32)
