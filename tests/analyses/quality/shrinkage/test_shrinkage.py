"""Refinement and other numbers of active latents: planted shrinkage is measured and undone."""

import importlib
from dataclasses import replace

import pytest
import torch
from scipy.optimize import nnls as one_at_a_time
from torch.nn.functional import normalize

from analyses import shrinkage
from analyses.quality.shrinkage.refinement import refined, thresholds, with_k, with_threshold
from dictlab import Dictionary, Metadata, ReLU, TopK
from dictlab.dictionary.activation_functions import AbsTopK, JumpReLU
from dictlab.dictionary.normalisation import LayerNorm
from dictlab.errors import DictlabError
from tests.planted import SITE, many_documents, random_dictionary, sparse_data, tiny_model


def shrunk(factor, n=8, d=16):
    """A dictionary of orthogonal directions whose activations are too small by a factor, and data made of them."""
    x, directions = sparse_data(400, n=n, d=d)
    mean = torch.full((d,), 0.7)
    return Dictionary(directions.T * factor, torch.zeros(n), directions, mean, mean, ReLU(), name="shrunk"), x


@pytest.mark.parametrize("activation", [ReLU(), TopK(5), AbsTopK(4)])
@pytest.mark.parametrize("normalisation", [None, LayerNorm()])
def test_refined_values_are_those_of_scipys_solver_token_by_token(activation, normalisation):
    dictionary = random_dictionary(20, 8, activation=activation, normalisation=normalisation)
    x = torch.randn(15, 8, generator=torch.Generator().manual_seed(1))
    codes = dictionary.encode(x)
    better = refined(dictionary, codes, x)
    assert torch.equal(better.indices, codes.indices)
    undo = dictionary.normalisation(x)[1]
    y = (x - undo.shift) / undo.scale - dictionary.b_out
    for t in range(len(x)):
        own = slice(int(codes.offsets[t]), int(codes.offsets[t + 1]))
        sign = codes.values[own].sign()
        directions = dictionary.W_dec[codes.indices[own]] * sign[:, None]
        expected, _ = one_at_a_time(directions[sign != 0].double().numpy().T, y[t].double().numpy())
        found = (better.values[own] * sign)[sign != 0]
        torch.testing.assert_close(found.double(), torch.from_numpy(expected), atol=1e-4, rtol=1e-4)


def test_planted_shrinkage_is_undone():
    dictionary, x = shrunk(0.6)
    codes = dictionary.encode(x)
    better = refined(dictionary, codes, x)
    on = codes.values > 1e-3
    torch.testing.assert_close(
        codes.values[on] / better.values[on], torch.full((int(on.sum()),), 0.6), atol=1e-3, rtol=0
    )
    assert float((dictionary.decode(better, x) - x).norm()) < 1e-3


def test_refinement_never_raises_the_error_of_a_token():
    dictionary = random_dictionary(40, 8, activation=TopK(6))
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(2))
    codes = dictionary.encode(x)
    before, after = ((dictionary.decode(c, x) - x).norm(dim=1) for c in (codes, refined(dictionary, codes, x)))
    assert (after <= before + 1e-5).all()


def test_thresholds_give_the_number_of_active_latents_asked_for():
    dictionary = random_dictionary(40, 8, activation=ReLU())
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(3))
    for wanted, cut in zip([1, 4, 9], thresholds(dictionary, x, [1, 4, 9]), strict=True):
        assert float(with_threshold(dictionary, cut).encode(x).l0().double().mean()) == pytest.approx(wanted, abs=0.01)
    assert with_k(dictionary, 3).encode(x).l0().max() == 3


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return many_documents(tmp_path_factory.mktemp("text"))


def test_the_report_marks_training_and_agrees_with_it_at_the_same_k(model, text):
    dictionary = random_dictionary(40, 16, activation=TopK(4), metadata=Metadata(site=SITE))
    report = shrinkage([dictionary], model=model, text=text, contexts=4, l0_levels=(1, 4, 16))
    frame = report.tables["recovery"].frame
    trained, same = (
        frame[frame["trained"]].iloc[0],
        frame[(frame["rule"] == "largest k") & (frame["setting"] == 4)].iloc[0],
    )
    assert same["normalised MSE"] == pytest.approx(trained["normalised MSE"])
    assert same["CE increase"] == pytest.approx(trained["CE increase"], abs=1e-6)
    row = report.tables["overview"].frame.iloc[0]
    assert row["normalised MSE refined"] < row["normalised MSE"]
    assert row["normalised MSE change"] == pytest.approx(row["normalised MSE refined"] - row["normalised MSE"])


def test_an_activation_function_with_a_rule_of_its_own_keeps_it_and_the_report_says_so(model, text):
    dictionary = random_dictionary(40, 16, activation=AbsTopK(4))
    report = shrinkage([dictionary], model=model, text=text, contexts=4)
    assert report.tables["recovery"].frame["rule"].tolist() == ["as trained"]
    assert "no other rules were tried" in report.warnings[0]


def test_a_threshold_of_a_jumprelu_replaces_its_own(model, text):
    dictionary = random_dictionary(40, 16, activation=JumpReLU(torch.full((40,), 0.5)))
    report = shrinkage([dictionary], model=model, text=text, contexts=4, l0_levels=(2, 8))
    assert set(report.tables["recovery"].frame["rule"]) == {"as trained", "largest k", "threshold"}


def test_no_active_latents_at_all_are_refused(model, text):
    with pytest.raises(DictlabError, match="levels is 0"):
        shrinkage([random_dictionary(40, 16)], model=model, text=text, l0_levels=(0, 4))


def test_tokens_without_any_active_latent_are_left_as_they_are():
    dictionary = replace(random_dictionary(10, 8, activation=ReLU()), b_enc=torch.full((10,), -1e3))
    x = normalize(torch.randn(5, 8), dim=1)
    codes = dictionary.encode(x)
    assert len(refined(dictionary, codes, x).values) == 0


def test_levels_that_no_dictionary_has_are_refused(tmp_path):
    with pytest.raises(DictlabError, match=r"levels are 64; random has 40 latents"):
        shrinkage([random_dictionary(40, 16)], model=tiny_model(), text=many_documents(tmp_path), l0_levels=(64,))


def test_an_interruption_leaves_what_was_measured_marked_as_partial(tmp_path, monkeypatch):
    opening = importlib.import_module(
        "analyses.quality.shrinkage.shrinkage"
    )  # the package offers the function under this name
    module = importlib.import_module("analyses.quality.shrinkage.measurement")
    whole, left = module._batch, [2]

    def interrupted(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(opening, "BATCH_TOKENS", 64)  # two sequences of 32 tokens
    monkeypatch.setattr(module, "_batch", interrupted)
    given = {"model": tiny_model(), "text": many_documents(tmp_path), "contexts": 6, "l0_levels": (2,)}
    report = shrinkage([random_dictionary(40, 16)], **given)
    assert report.warnings == ("PARTIAL: interrupted after 4 of 6 sequences.",)
    assert report.settings["contexts"] == 4
    with pytest.raises(KeyboardInterrupt):
        shrinkage([random_dictionary(40, 16)], **given)


def test_how_a_latents_scale_is_shared_between_encoder_and_decoder_changes_nothing(model, text):
    plain = random_dictionary(12, 16, activation=ReLU())  # fewer than dimensions: one answer refines best
    s = torch.rand(12, generator=torch.Generator().manual_seed(3)).mul(2).exp()
    same = replace(plain, W_enc=plain.W_enc * s, b_enc=plain.b_enc * s, W_dec=plain.W_dec / s[:, None])
    rows = [shrinkage([d], model=model, text=text, contexts=2, l0_levels=(12,)) for d in (plain, same)]
    one, other = (report.tables["overview"].frame.drop(columns="dictionary").iloc[0] for report in rows)
    assert one.to_numpy(dtype=float) == pytest.approx(other.to_numpy(dtype=float), rel=2e-3, abs=1e-5)
