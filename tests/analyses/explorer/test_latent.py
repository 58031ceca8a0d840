"""The portrait of one latent against brute force over every token of the sample."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

import dictlab
from analyses.common.inputs import open_inputs
from analyses.explorer.latent import NEAREST, latent
from dictlab import DictlabError, TopK
from tests.planted import SITE, random_dictionary, tiny_model

MODEL = tiny_model()
D = replace(random_dictionary(24, 16, activation=TopK(3)), firing_rate=torch.full((24,), 0.125))
GIVEN = {"model": MODEL, "tokens": 640, "examples": 4}


@pytest.fixture(scope="module")
def truth(text):
    inputs = open_inputs(D, model=MODEL, text=text)
    tokens = inputs.sample(640 // inputs.context, "train", seed=0).tokens
    codes = D.encode(MODEL.capture(tokens, SITE)[SITE]).dense().view(*tokens.shape, -1)
    number = int((codes > 0).flatten(0, 1).float().mean(0).argmax())
    return tokens, codes[..., number], number


def test_rates_strengths_and_contexts(text, truth):
    tokens, values, number = truth
    portrait = latent(D, number, text=text, **GIVEN)
    assert portrait.n_tokens == tokens.numel()
    assert portrait.firing_rate == pytest.approx(float((values > 0).float().mean()))
    assert portrait.recorded_firing_rate == 0.125
    assert portrait.mean == pytest.approx(float(values[values > 0].mean()), rel=1e-5)
    strongest = values.max(dim=1).values.sort(descending=True).values[:4]
    assert [c.activation for c in portrait.contexts] == pytest.approx(strongest.tolist())
    row = int(values.max(dim=1).values.argmax())
    fired_on = MODEL.tokenizer.decode([int(tokens[row, values[row].argmax()])])
    best = portrait.contexts[0].passage
    assert (best.pieces[best.peak].text.strip(), best.pieces[best.peak].weight) == (fired_on.strip(), 1.0)
    assert f"{best}" in str(portrait) and "«" in str(best)


def test_nearest_latents_of_its_dictionary_without_itself(text, truth):
    portrait = latent(D, truth[2], text=text, **GIVEN)
    cosines = normalize(D.W_dec, dim=1) @ normalize(D.W_dec[truth[2]], dim=0)
    order = [i for i in cosines.argsort(descending=True).tolist() if i != truth[2]][:NEAREST]
    assert [i for i, _ in portrait.neighbours] == order
    assert [c for _, c in portrait.neighbours] == pytest.approx(cosines[order].tolist(), abs=1e-5)


def test_promoted_tokens_are_those_whose_logits_rise(text, truth):
    portrait = latent(D, truth[2], text=text, **GIVEN)
    streams = MODEL.capture(truth[0], MODEL.last_site)[MODEL.last_site].flatten(0, 1)
    rise = (MODEL.unembed(streams + portrait.mean * D.W_dec[truth[2]]) - MODEL.unembed(streams)).mean(0)
    rise = (rise - rise.mean())[: len(MODEL.tokenizer)]
    top = {MODEL.tokenizer.decode([i]) for i in rise.argsort(descending=True)[:20].tolist()}
    assert portrait.promoted[0][0] in top, "a sample of the streams, so not to the last place"
    assert all(change > 0 for _, change in portrait.promoted) and all(c < 0 for _, c in portrait.suppressed)


def test_a_silent_latent_says_so(text):
    silent = replace(D, b_enc=torch.where(torch.arange(24) == 5, -1e6, D.b_enc), activation=dictlab.ReLU())
    portrait = latent(silent, 5, text=text, **GIVEN)
    assert portrait.firing_rate == 0 and portrait.contexts == () and portrait.promoted is None
    assert "active nowhere" in str(portrait) and "nan" not in str(portrait)


def test_a_latent_that_is_not_there(text):
    with pytest.raises(DictlabError, match="random has the latents 0 to 23"):
        latent(D, 24, text=text, **GIVEN)


def test_it_is_a_name_of_the_package():
    assert dictlab.latent is latent and {"latent", "explore"} <= set(dir(dictlab))
