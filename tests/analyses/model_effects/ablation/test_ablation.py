"""Sparsity of downstream effects: closed forms, and ablations against whole forwards of the model."""

import importlib
import math
from dataclasses import replace

import pytest
import torch

from analyses import ablation
from analyses.common.patching import clean_runs
from analyses.model_effects.ablation.logit_sparsity import ablation_effects, medians, sparsity, spread
from dictlab import Metadata, TopK
from dictlab.errors import DictlabError
from tests.planted import SITE, many_documents, planted_model, random_dictionary, tiny_model


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


@pytest.mark.parametrize("n", [1, 2, 96, 97])
def test_medians_are_the_lower_middle_of_each_row(n):
    values = torch.randn(3, 5, n, generator=torch.Generator().manual_seed(n)).round(decimals=1)  # with ties
    assert torch.equal(medians(values)[..., 0], values.sort(dim=-1).values[..., (n - 1) // 2])


def test_in_a_model_that_only_unembeds_an_effect_is_the_unembedded_step():
    model = planted_model()
    tokens = torch.randint(0, 97, (1, 20), generator=torch.Generator().manual_seed(0))
    steps = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    found = ablation_effects(clean_runs(model, tokens, [SITE])[SITE].tail(7, 5), steps)
    v = torch.zeros(3, 5, 97, dtype=torch.double)
    v[:, 0] = -(steps @ model.model.lm_head.weight.T).double()
    v[:, 0] -= v[:, 0].median(dim=-1, keepdim=True).values
    assert found.size.tolist() == pytest.approx(v.flatten(1).norm(dim=1).tolist(), rel=1e-4)
    shares = v.abs().sum(dim=(1, 2)) ** 2 / v.square().sum(dim=(1, 2)) / (5 * 97)
    assert found.sparsity.tolist() == pytest.approx(shares.tolist(), rel=1e-4)


def test_every_ablation_equals_a_whole_forward_without_it(model, text, monkeypatch):
    monkeypatch.setattr("analyses.model_effects.ablation.logit_sparsity.LOGITS", 3 * 5 * 97)  # blocks of three effects
    sites = {"here": SITE, "later": "blocks.2.hook_mlp_out"}
    dictionaries = {
        name: random_dictionary(40, 16, activation=TopK(4), seed=i, name=name, metadata=Metadata(site=site))
        for i, (name, site) in enumerate(sites.items())
    }
    report = ablation(list(dictionaries.values()), model=model, text=text, contexts=3, latents_per_token=8, positions=5)
    frame = report.tables["effects"].frame
    tokens = text.as_split("heldout").sample(model.tokenizer, 32, 3, seed=0)
    own = frame[frame["kind"] == "latent"]
    assert set(own.groupby(["dictionary", "sequence"]).size()) <= {1, 2, 3, 4} and set(own["dictionary"]) == set(sites)
    for row in frame[frame["kind"] != "random direction"].to_dict("records"):
        sequence, place = tokens[row["sequence"]][None], (0, row["position"])
        x = model.capture(sequence, row["site"])[row["site"]]
        without = x.clone()
        if row["kind"] == "latent":
            dictionary = dictionaries[row["dictionary"]]
            activation = dictionary.encode(x[0]).dense()[row["position"], row["which"]]
            without[place] -= activation * dictionary.W_dec[row["which"]]
        else:
            activation = x[place][row["which"]]
            without[place][row["which"]] = 0
        difference = (model.splice(sequence, row["site"], without).logits - model.forward(sequence).logits)[0]
        here = difference[row["position"] : row["position"] + 5]
        assert row["activation"] == pytest.approx(float(activation), rel=1e-5, abs=1e-5)
        assert row["sparsity"] == pytest.approx(float(sparsity(here)), rel=1e-3)
        assert row["effect"] == pytest.approx(float(spread(here).size), rel=1e-3)


def test_an_interruption_leaves_what_was_measured_marked_as_partial(model, text, monkeypatch):
    module = importlib.import_module(
        "analyses.model_effects.ablation.ablation"
    )  # the package offers the function under this name
    whole, left = module.ablation_effects, [3]

    def interrupted(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(module, "ablation_effects", interrupted)
    report = ablation([random_dictionary(40, 16)], model=model, text=text, contexts=6, positions=4)
    assert report.warnings == ("PARTIAL: interrupted after 3 of 6 tokens.",)
    assert report.settings["contexts"] == 3 and report.tables["effects"].frame["sequence"].max() == 2
    left[0] = 1
    with pytest.raises(KeyboardInterrupt):
        ablation([random_dictionary(40, 16)], model=model, text=text, contexts=6, positions=4)


def test_random_directions_are_as_long_and_channels_stand_beside(model, text):
    dictionary = random_dictionary(40, 16, activation=TopK(4))
    report = ablation([dictionary], model=model, text=text, contexts=6, latents_per_token=2, positions=4)
    frame, overview = report.tables["effects"].frame, report.tables["overview"].frame
    counts = frame.groupby("kind").size()
    assert counts["latent"] == counts["random direction"] <= 12 and counts["residual channel"] == 12
    assert overview["features"].tolist() == ["random", "residual channels"]
    assert overview["sparsity low"][0] <= overview["sparsity"][0] <= overview["sparsity high"][0]


def test_what_is_found_of_a_dictionary_does_not_depend_on_its_company(model, text):
    one, other = (random_dictionary(40, 16, activation=TopK(4), seed=i, name=f"d{i}") for i in range(2))
    frames = [
        ablation(given, model=model, text=text, contexts=4, positions=4).tables["effects"].frame
        for given in ([one], [other, one])
    ]
    own = [frame[frame["dictionary"] == "d0"].reset_index(drop=True) for frame in frames]
    assert own[0]["which"].tolist() == own[1]["which"].tolist()
    assert own[0]["sparsity"].tolist() == pytest.approx(own[1]["sparsity"].tolist(), rel=1e-4)


def test_l0_counts_all_active_latents_and_not_those_ablated(model, text):
    dictionary = random_dictionary(60, 16, activation=TopK(9), normalisation=None)
    row = (
        ablation([dictionary], model=model, text=text, contexts=5, latents_per_token=3, positions=4)
        .tables["overview"]
        .frame.loc[0]
    )
    assert row["ablated"] == 15 and 3 < row["L0"] <= 9


def test_rare_latents_have_a_mean_of_their_own(model, text):
    rates = torch.linspace(0, 1, 40)
    dictionary = replace(random_dictionary(40, 16, activation=TopK(8)), firing_rate=rates)
    tables = ablation([dictionary], model=model, text=text, contexts=8, positions=4).tables
    latents = tables["effects"].frame.query("kind == 'latent'")
    assert latents["rate"].to_numpy() == pytest.approx(rates[latents["which"].to_numpy()].numpy())
    expected = latents.loc[latents["which"] < 4, "sparsity"].mean()
    assert tables["overview"].frame["rare"][0] == pytest.approx(expected)


def test_a_dictionary_of_which_nothing_fires_has_no_sparsity(model, text):
    silent = replace(random_dictionary(40, 16, activation=TopK(4)), b_enc=torch.full((40,), -1e4))
    report = ablation([silent], model=model, text=text, contexts=3, positions=4)
    assert math.isnan(report.tables["overview"].frame["sparsity"][0])


def test_more_positions_than_the_context_holds_are_refused(model, text):
    with pytest.raises(DictlabError, match="1 to 31 have a token before"):
        ablation([random_dictionary(40, 16)], model=model, text=text, positions=32)
