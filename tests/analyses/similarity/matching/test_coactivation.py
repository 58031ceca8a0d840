"""Sparse joint sums against dense ones, planted firing sets, and the codes behind them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from analyses.similarity.matching import coactivation
from analyses.similarity.matching.coactivation import alike, best_partners, shuffled_means, values
from analyses.similarity.matching.code_sample import firings, randomly_fired, sampled
from analyses.similarity.matching.cross_reconstruction import cross_fit
from analyses.similarity.matching.matching import matching
from dictlab import DictlabError, Text, TopK
from tests.planted import SITE, random_dictionary, tiny_model

TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs.\n"


def codes(tokens: int, n: int, seed: int, rate: float = 0.3) -> sparse.csr_array:
    generator = np.random.default_rng(seed)
    dense = generator.exponential(size=(tokens, n)) * (generator.random((tokens, n)) < rate)
    return sparse.csr_array(dense)


def in_sequences(tokens: int, length: int = 10) -> np.ndarray:
    return np.arange(tokens) // length


def by_hand(a: np.ndarray, b: np.ndarray, i: int, j: int) -> list[float]:
    f, g = a[:, i], b[:, j]
    both, either = ((f > 0) & (g > 0)).sum(), ((f > 0) | (g > 0)).sum()
    return [np.corrcoef(f, g)[0, 1], both / either, both / (g > 0).sum(), both / (f > 0).sum()]


@given(st.integers(0, 1000), st.integers(2, 9), st.integers(2, 9))
@settings(max_examples=25, deadline=None)
def test_sparse_sums_give_what_dense_columns_do(seed, n, m):
    a, b = codes(200, n, seed), codes(200, m, seed + 1)
    of_a, of_b = np.arange(n), np.arange(n) % m
    found = alike(a, b, of_a, of_b, in_sequences(200), fewest=2, seed=0)
    expected = [by_hand(a.toarray(), b.toarray(), i, j) for i, j in zip(of_a, of_b, strict=True)]
    np.testing.assert_allclose(found.value, expected, atol=1e-12)
    np.testing.assert_allclose(found.mean, np.mean(expected, axis=0), atol=1e-12)
    np.testing.assert_allclose(values(a, b, of_a, of_b, fewest=2), expected, atol=1e-12)


@pytest.mark.parametrize("cells", [1, 40, 1 << 24])
def test_the_best_partner_is_the_largest_correlation_there_is_whatever_the_block(monkeypatch, cells):
    monkeypatch.setattr(coactivation, "CELLS", cells)
    monkeypatch.setattr(coactivation.joint, "__defaults__", (cells,))
    a, b = codes(300, 12, 0), codes(300, 17, 1)
    whole = np.corrcoef(a.toarray().T, b.toarray().T)[:12, 12:]
    for found, expected in zip(best_partners(a, b, 2), (whole, whole.T), strict=True):
        np.testing.assert_array_equal(found.latent, expected.argmax(axis=1))
        np.testing.assert_allclose(found.correlation, expected.max(axis=1))


def test_latents_that_fire_too_seldom_have_no_correlation_and_no_partner():
    a = codes(400, 6, 0)
    rare = a.toarray()
    rare[5:, 2] = 0
    rare[:5, 2] = 1
    a = sparse.csr_array(rare)
    found = alike(a, a, np.arange(6), np.arange(6), in_sequences(400), fewest=6, seed=0)
    assert np.isnan(found.value[2]).all() and found.n == 5
    assert best_partners(a, a, 6)[0].latent.tolist() == [0, 1, -1, 3, 4, 5]
    nobody = alike(a, a, np.arange(6), np.arange(6), in_sequences(400), fewest=401, seed=0)
    assert np.isnan(nobody.mean).all() and nobody.n == 0


def test_a_child_fires_within_its_parent():
    """The planted parent fires at 40 % of the tokens, the child at a quarter of those."""
    generator = np.random.default_rng(0)
    parent = generator.random(8000) < 0.4
    child = parent & (generator.random(8000) < 0.25)
    a, b = (sparse.csr_array(x[:, None].astype(float)) for x in (parent, child))
    _, jaccard, parent_given_child, child_given_parent = alike(
        a, b, np.zeros(1, int), np.zeros(1, int), in_sequences(8000), fewest=2, seed=0
    ).value[0]
    assert parent_given_child == 1
    assert child_given_parent == jaccard == pytest.approx(0.25, abs=0.03)


def test_the_interval_of_a_correlation_covers_the_planted_one():
    """Two normal variables with correlation 1/2, in 300 sequences of independent tokens: about 95 of 100."""
    generator = np.random.default_rng(1)
    common = generator.normal(size=(3000, 100))
    a, b = (sparse.csr_array(common + generator.normal(size=common.shape)) for _ in range(2))
    found = alike(a, b, np.arange(100), np.arange(100), in_sequences(3000), fewest=2, seed=0)
    covered = ((found.low[:, 0] <= 0.5) & (found.high[:, 0] >= 0.5)).mean()
    assert covered > 0.88 and (found.high[:, 0] - found.low[:, 0]).mean() < 0.1


def test_shuffled_partners_of_independent_latents_are_as_alike_as_the_pairs_and_of_equal_ones_are_not():
    a, b = codes(500, 30, 0), codes(500, 30, 1)
    means, p = shuffled_means(a, b, np.arange(30), np.arange(30), fewest=2, permutations=99, seed=0)
    np.testing.assert_allclose(means, values(a, b, np.arange(30), np.arange(30), fewest=2).mean(axis=0), atol=0.02)
    assert p[0] > 0.05
    _, same = shuffled_means(a, a, np.arange(30), np.arange(30), fewest=2, permutations=99, seed=0)
    assert same[0] == pytest.approx(0.01)


def test_random_latents_fire_as_often_as_they_were_told_to():
    x = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    rates = torch.tensor([0.001, 0.01, 0.3, 0.0, 1.0])
    found = randomly_fired(x, torch.randn(5, 8), rates)
    assert firings(found).tolist() == [1, 10, 300, 1, 999]


def test_codes_that_are_sums_of_others_are_reconstructed_and_others_are_not():
    """Two of the latents to predict are mixtures of the predictors, one is independent of them."""
    b, noise = codes(4000, 6, 0), codes(4000, 1, 1)
    mixed = b[:, [0]] + 2 * b[:, [1]], b[:, [2]] * 0.5
    a = sparse.hstack([*mixed, noise], format="csr")
    found = cross_fit(a, b, in_sequences(4000), ridge=1e-6, fewest=10, permutations=19, seed=0)
    assert found.r2[:2] == pytest.approx([1, 1], abs=1e-6) and abs(found.r2[2]) < 0.02
    assert found.median[0] == pytest.approx(1) and found.p[0] == pytest.approx(0.05) and abs(found.shuffled[0]) < 0.02
    assert found.low[2] < 0 < found.high[2] + 0.02


def test_cross_reconstruction_is_ridge_regression_on_the_first_three_quarters():
    a, b = codes(400, 3, 0), codes(400, 5, 1)
    a = sparse.csr_array(a + b[:, :3])
    found = cross_fit(a, b, in_sequences(400), ridge=0.1, fewest=2, permutations=1, seed=0)
    x, y = b.toarray(), a.toarray()
    mean_x, mean_y = x[:300].mean(axis=0), y[:300].mean(axis=0)
    gram = np.cov(x[:300].T, bias=True)
    gram += 0.1 * np.trace(gram) / 5 * np.eye(5)
    weights = np.linalg.solve(gram, (x[:300] - mean_x).T @ (y[:300] - mean_y) / 300)
    guess = (x[300:] - mean_x) @ weights + mean_y
    expected = 1 - ((y[300:] - guess) ** 2).sum(axis=0) / ((y[300:] - y[300:].mean(axis=0)) ** 2).sum(axis=0)
    np.testing.assert_allclose(found.r2, expected, atol=1e-10)


def test_latents_that_never_fire_are_predicted_by_nobody():
    a = sparse.csr_array((400, 3))
    assert cross_fit(a, codes(400, 3, 0), in_sequences(400), ridge=0.1, fewest=2, permutations=1, seed=0) is None


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 60)
    return str(path)


def measured(a, b, text, **options):
    options = {"tokens": 1280, "min_active_tokens": 5, "permutations": 19} | options
    return matching([a, b], model=tiny_model(), text=text, **options)


def of_site(name: str, seed: int = 0, n: int = 24):
    return random_dictionary(n, 16, activation=TopK(4), seed=seed, name=name)


def test_a_dictionary_and_its_permutation_fire_alike_in_every_measure(text):
    a = of_site("a")
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    b = replace(a, W_dec=2 * a.W_dec[order], W_enc=a.W_enc[:, order], b_enc=a.b_enc[order], name="b")
    report = measured(a, b, text)
    found = report.tables["similarities"].frame.set_index("measure")
    alike_ones = found[~found.index.str.contains("Procrustes|cross")]
    assert alike_ones["value"].to_numpy() == pytest.approx(1, abs=1e-5)
    assert found.loc["Procrustes residual, paired decoders", "value"] == pytest.approx(0, abs=1e-3)
    assert (found.loc["cross-reconstruction R², total", "value"] > 0.95).all()
    tested_ones = found["shuffled, p"].dropna()
    assert len(tested_ones) >= 10 and (tested_ones <= 0.1).all()
    assert report.tables["off_diagonal"].frame.empty
    assert len(report.plots["quadrants"].frame) and report.plots["quadrants"].frame["cosine"].min() > 0.99


def test_one_direction_with_two_triggers_is_listed_and_so_is_the_reverse(text):
    """Encoders of two latents exchanged; their decoder directions stay."""
    a = of_site("a")
    order = torch.tensor([1, 0, *range(2, 24)])
    b = replace(a, W_enc=a.W_enc[:, order], b_enc=a.b_enc[order], name="b")
    listed = measured(a, b, text, min_active_tokens=2).tables["off_diagonal"].frame
    same = listed[listed["quadrant"] == "same direction, other trigger"]
    other = listed[listed["quadrant"] == "other direction, same trigger"]
    assert set(zip(same["latent"], same["partner"], strict=True)) == {(0, 0), (1, 1)}
    assert set(zip(other["latent"], other["partner"], strict=True)) == {(0, 1), (1, 0)}
    assert (same["correlation"] < 0.5).all() and other["correlation"].to_numpy() == pytest.approx(1)


def test_decoder_norms_and_units_of_codes_do_not_change_what_codes_are_worth(text):
    """f and d become c f and d / c: the same function."""
    a, other = of_site("a"), of_site("b", seed=3)
    factor = torch.rand(24, generator=torch.Generator().manual_seed(2)) + 0.5
    scaled = replace(a, W_dec=a.W_dec / factor[:, None], W_enc=a.W_enc * factor, b_enc=a.b_enc * factor)
    relu = [replace(one, activation=replace(one.activation, k=24), name="a") for one in (a, scaled)]
    first, second = (measured(one, other, text).tables["similarities"].frame for one in relu)
    np.testing.assert_allclose(first["value"], second["value"], atol=2e-4)


def test_without_a_model_directions_are_still_compared_and_it_says_what_was_left_out():
    report = matching([of_site("a"), of_site("b", seed=1)])
    assert any("Only directions are compared" in warning for warning in report.warnings)
    assert "pairs" in report.tables and "off_diagonal" not in report.tables and report.settings["tokens"] == 0
    assert "CKA, paired decoders" in set(report.tables["similarities"].frame["measure"])
    assert not any("Only directions" in w for w in matching([of_site("a"), of_site("b", seed=1)], tokens=0).warnings)


def test_too_few_tokens_are_refused(text):
    with pytest.raises(DictlabError, match="tokens is 40; expected 64"):
        measured(of_site("a"), of_site("b", seed=1), text, tokens=40)


def test_codes_that_are_no_numbers_are_refused_by_name(text):
    broken = of_site("b", seed=1)
    with pytest.raises(DictlabError, match="b: its codes are not all finite"):
        sampled(
            [of_site("a"), replace(broken, b_enc=broken.b_enc * torch.inf)], tiny_model(), text, 640, 0, "cpu"
        )  # fmt: skip


def test_the_first_token_of_a_context_is_left_out(text):
    sample, _ = sampled([of_site("a")], tiny_model(), text, 640, 0, "cpu")
    assert sample.n_tokens == 20 * 31 and sample.codes["a"].shape == (620, 24) and len(sample.x) == 620
    assert of_site("a").metadata.site == SITE


def captured(text: str, n: int = 20) -> torch.Tensor:
    """What the tiny model has at the site, without the first tokens of contexts: the sample that `sampled` takes."""
    model = tiny_model()
    tokens = Text.open(text).as_split("train").sample(model.tokenizer, 32, n, seed=0)
    return model.capture(tokens, SITE)[SITE][:, 1:]


def test_an_array_of_what_the_model_has_gives_the_similarities_that_the_model_does(text):
    """Sequences come in another order, which no similarity of all tokens minds."""
    pair, rows = [of_site("a"), of_site("b", seed=1)], captured(text)
    ours, others = sampled(pair, tiny_model(), text, 640, 0, "cpu")[0], sampled(pair, None, "", 620, 0, "cpu", rows)[0]
    assert others.n_tokens == 620 and others.n_sequences == 20 and len(others.x) == 620
    for name, rates in ours.rates().items():
        torch.testing.assert_close(others.rates()[name], rates)
    by_model = measured(*pair, text, tokens=640).tables["similarities"].frame.set_index("measure")
    report = matching(pair, data=rows, tokens=620, min_active_tokens=5, permutations=19)
    by_array = report.tables["similarities"].frame.set_index("measure")
    for name in ("MMCS", "correlation, matched pairs", "Jaccard, matched pairs", "P(A fires | B fires), matched pairs"):
        np.testing.assert_allclose(by_array.loc[[name], "value"], by_model.loc[[name], "value"], atol=1e-5)
    assert report.settings["data"] == "array" and report.settings["tokens"] == 620
    assert not any("Only directions" in warning for warning in report.warnings)


def test_rows_without_sequences_are_said_to_be_resampled_in_blocks(text):
    rows = captured(text).flatten(0, 1)
    report = matching([of_site("a"), of_site("b", seed=1)], data=rows, min_active_tokens=5, permutations=5)
    assert report.settings["tokens"] == 620 // 9 * 9 and any("blocks of 9 rows" in w for w in report.warnings)


@pytest.mark.parametrize(
    ("data", "options", "what"),
    [
        (torch.ones(9, 4, 7), {}, "activations of width 7; a reads 16"),
        (torch.ones(1, 4, 16), {}, "1 of its sequences is no sample"),
        (torch.ones(9, 4, 16), {"tokens": 0}, "data and 0 tokens"),
        (torch.ones(9, 4, 16), {"tokens": 7}, "tokens is 7; expected 8"),
        (torch.ones(9, 4, 16), {"model": "gpt2"}, "a model and data are given"),
        (torch.full((9, 4, 16), torch.nan), {}, "NaN"),
        ("nowhere.npy", {}, "nowhere.npy: no such file"),
    ],
)
def test_data_that_does_not_serve_is_refused_in_a_sentence(data, options, what):
    with pytest.raises(DictlabError, match=what):
        matching([of_site("a"), of_site("b", seed=1)], data=data, **options)
