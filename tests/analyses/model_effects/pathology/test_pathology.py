"""Interventions against their formulas and invariants, damage against whole forwards, and the analysis as a whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

import analyses.model_effects.pathology.replacement_damage as running
from analyses import pathology
from analyses.common.patching import clean_runs
from analyses.composition.stitching.stitching import join
from analyses.model_effects.pathology.replacements import (
    BASELINES,
    INTERVENTIONS,
    SHRINKAGE,
    ErrorSample,
    at_angle,
    site_statistics,
)
from analyses.model_effects.pathology.step_curves import MULTIPLES, decoder_directions, effective_length
from dictlab import Codes, DictlabError, Metadata, Text, TopK
from dictlab.data.activations import moments
from dictlab.numerics.statistics import ratio, spearman
from tests.planted import SITE, identity_dictionary, random_dictionary, tiny_model

B, T, D, DRAWS = 3, 5, 12, 4


def error_sample(seed: int = 0, draws: int = DRAWS) -> ErrorSample:
    torch.manual_seed(seed)
    x = 3 * torch.randn(B, T, D) + 1
    x[0, 0] *= 100  # first tokens have huge norms in real models
    x_hat = 0.8 * x + torch.randn(B, T, D)
    pool = torch.randn(4, T, D) @ torch.diag(torch.arange(1.0, D + 1)) + 2
    at_site = site_statistics(moments([pool[:, 1:]], covariance=True), pool)
    return ErrorSample(x, x_hat, at_site, torch.randn_like(pool), torch.Generator().manual_seed(seed), draws)


def made(name: str, g: ErrorSample) -> torch.Tensor:
    return INTERVENTIONS[name].make(g)


def test_interventions_without_chance_are_their_formulas():
    g = error_sample()
    x, x_hat = g.x, g.x_hat
    norm = lambda v: v.norm(dim=-1, keepdim=True)  # noqa: E731
    expected = {
        "reconstruction": x_hat,
        "norm-corrected": x_hat * norm(x) / norm(x_hat),
        "norm only": x * norm(x_hat) / norm(x),
        "zero": 0 * x,
        "batch mean": x.mean(dim=(0, 1)).expand_as(x),
        "data mean": g.site_statistics.pool[:, 1:].mean(dim=(0, 1)).expand_as(x),
    }
    assert set(expected) == {name for name, one in INTERVENTIONS.items() if not one.random}
    for name, value in expected.items():
        torch.testing.assert_close(made(name, g), value[None], rtol=1e-5, atol=1e-5, msg=name)


def test_the_published_formula_of_theta_random_holds():
    """|x~| (c u + sqrt(1 - c²) o) with o = unit(z - (z.u) u), for one token written out."""
    g = error_sample()
    x, x_hat, z = g.x[1, 2].double(), g.x_hat[1, 2].double(), torch.randn(D).double()
    u, c = x / x.norm(), float(x @ x_hat / x.norm() / x_hat.norm())
    o = z - (z @ u) * u
    expected = x_hat.norm() * (c * u + (1 - c**2) ** 0.5 * o / o.norm())
    torch.testing.assert_close(at_angle(x, x_hat, z), expected)


@pytest.mark.parametrize("name", [name for name, one in INTERVENTIONS.items() if one.random])
def test_controls_match_what_they_promise_to_1e_4(name):
    g = error_sample()
    new = made(name, g)
    assert new.shape == (DRAWS, B, T, D)
    epsilon, distance = g.error.norm(dim=-1), (new - g.x).norm(dim=-1)
    if name in BASELINES:
        torch.testing.assert_close(distance, epsilon.expand_as(distance), rtol=1e-4, atol=1e-4)
    if "θ" in name or "parallel" in name:
        cosine = cosine_similarity(g.x, g.x_hat, dim=-1)
        torch.testing.assert_close(
            cosine_similarity(g.x, new, dim=-1), cosine.expand_as(distance), rtol=1e-4, atol=1e-4
        )
        like = g.x if "true" in name else g.x_hat
        torch.testing.assert_close(new.norm(dim=-1), like.norm(dim=-1).expand_as(distance), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(new[0], new[1])  # draws differ


def test_keeping_the_parallel_part_with_isotropic_noise_is_theta_random_at_sae_norm():
    g, z = error_sample(), torch.randn(DRAWS, B, T, D)
    u = normalize(g.x, dim=-1)
    parallel = (g.error * u).sum(-1, keepdim=True) * u
    o = normalize(z - (z * u).sum(-1, keepdim=True) * u, dim=-1)
    expected = g.x + parallel + (g.error - parallel).norm(dim=-1, keepdim=True) * o
    torch.testing.assert_close(at_angle(g.x, g.x_hat, z), expected, rtol=1e-4, atol=2e-4)


def test_without_an_error_every_baseline_is_the_activation():
    g = error_sample()._replace(x_hat=error_sample().x)
    for name in BASELINES:
        torch.testing.assert_close(made(name, g), g.x.expand(DRAWS, -1, -1, -1), rtol=1e-5, atol=1e-4)


def test_covariance_mixtures_have_the_covariance_of_the_activations():
    """Directions of unit(Σ^½ z), weighted by their length, against Σ; 40,000 draws give 3 %."""
    g = error_sample(draws=1)
    root, pool = g.site_statistics.covariance_root.double(), g.site_statistics.pool[:, 1:].flatten(0, 1).double()
    sigma = torch.cov(pool.T, correction=0)
    shrunk = sigma + SHRINKAGE * sigma.trace() / D * torch.eye(D)
    torch.testing.assert_close(root @ root, shrunk, rtol=1e-4, atol=1e-3)
    drawn = torch.randn(40_000, D).double() @ root
    assert (torch.cov(drawn.T) - shrunk).norm() < 0.03 * shrunk.norm()
    assert g.site_statistics.spread == pytest.approx(float(shrunk.trace().sqrt()), rel=1e-4)


def test_mixtures_and_shuffled_errors_come_from_the_pool_and_not_from_first_positions():
    g = error_sample(draws=50)
    pool, errors = g.site_statistics.pool[:, 1:].flatten(0, 1), g.pool_errors
    differences = normalize((pool[:, None] - pool).flatten(0, 1), dim=-1)
    steps = normalize(made("real mixture", g) - g.x, dim=-1)[:, 1:]
    assert ((steps[:5].flatten(0, 2) @ differences.T).amax(dim=1) > 0.999).all()
    steps = normalize(made("shuffled error", g) - g.x, dim=-1)[:, 1:].flatten(0, 2)
    assert ((steps @ normalize(errors[:, 1:].flatten(0, 1), dim=-1).T).amax(dim=1) > 0.999).all()
    steps = normalize(made("shuffled error, same position", g) - g.x, dim=-1)[:, 1:]
    for position in range(T):
        here = steps[:, :, position].flatten(0, 1) @ normalize(errors[:, position], dim=-1).T
        assert (here.amax(dim=1) > 0.999).all()


def test_the_past_changes_nothing_about_a_token_replaced_alone():
    """Against whole forwards in which that token alone differs."""
    model = tiny_model()
    tokens = torch.randint(97, (2, 12))
    for site in (SITE, "transformer.h.1.attn.c_proj:in", "blocks.1.hook_mlp_out"):
        clean_run = clean_runs(model, tokens, [site])[site]
        new = clean_run.x + torch.randn(3, *clean_run.x.shape)
        tail = clean_run.tail(4, 5)
        versions = tail.x.expand(3, *tail.x.shape).clone()
        versions[:, :, 0] = new[:, :, 4]
        whole = clean_run.x.expand(3, *clean_run.x.shape).clone()
        whole[:, :, 4] = new[:, :, 4]
        expected = clean_run.outputs([whole]).kl
        torch.testing.assert_close(tail.outputs([versions]).kl, expected[..., 4:9], rtol=1e-3, atol=1e-5)
        assert expected[..., :4].abs().max() < 1e-6  # the past cannot know


def test_steps_along_latents_are_taken_from_the_right_classes():
    dictionary = random_dictionary(6, 3)
    alive = torch.tensor([False, True, True, True, False, False])  # of latent 0 it is these tokens that show it
    codes = Codes(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0, 1, 2]), torch.tensor([0, 2, 3, 3]), 6)
    active, silent, dead = decoder_directions(dictionary, codes, alive, torch.Generator().manual_seed(0))
    rows = dictionary.directions
    torch.testing.assert_close(active, torch.stack([rows[0], rows[2], rows[0] * torch.nan]), equal_nan=True)
    for _ in range(20):
        _, silent, dead = decoder_directions(dictionary, codes, alive, torch.Generator())
        for token, allowed in enumerate(([1, 2, 3], [0, 1, 3], [0, 1, 2, 3])):
            assert any(torch.equal(silent[token], rows[i]) for i in allowed)
        assert all(any(torch.equal(row, rows[i]) for i in (4, 5)) for row in dead)


def test_effective_length_inverts_a_power_law_and_says_when_it_is_outside():
    curve = 0.3 * np.array(MULTIPLES) ** 2
    found = effective_length(np.stack([curve] * 4), np.array([0.3 * 1.7**2, 0.01, 100.0, np.nan]))
    assert found[0] == pytest.approx(1.7, rel=1e-3)
    assert found[1] == 0 and np.isinf(found[2]) and np.isnan(found[3])


def test_ratios_are_ratios_of_means_and_paired():
    """Where one damage is exactly twice the other in every sequence, the interval has no width."""
    under = np.random.default_rng(0).gamma(1, size=20)
    assert ratio(2 * under, under, 0) == pytest.approx((2, 2, 2))
    over = np.random.default_rng(1).gamma(1, size=20)
    found = ratio(over, under, 0)
    assert found.value == pytest.approx(over.sum() / under.sum()) and found.low < found.value < found.high


def test_spearman_agrees_with_scipy():
    from scipy.stats import spearmanr

    generator = np.random.default_rng(0)
    a = generator.integers(0, 9, (6, 50)).astype(float)  # with ties
    b = a + generator.normal(0, 3, a.shape)
    found = spearman(a, b, 0)
    assert found.value == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic, abs=1e-9)
    assert found.low < found.value < found.high


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Text:
    folder = tmp_path_factory.mktemp("text")
    generator = np.random.default_rng(0)
    for number in range(200):
        (folder / f"{number}.txt").write_text("".join(generator.choice(list("abcdef ghij(klm)\n"), size=60)))
    return Text.files(folder)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


FAST = {
    "contexts": 6,
    "context_length": 16,
    "draws": 1,
    "random_points": 8,
    "sweep_contexts": 2,
    "positions_after": 3,
    "min_occurrences": 3,
}
SPARSE = {
    "contexts": 6,
    "context_length": 16,
    "draws": 1,
    "random_points": 0,
    "sweep_contexts": 0,
    "positions_after": 0,
}


def at(site: str, d: int = 16, **options):
    return random_dictionary(24, d, metadata=Metadata(site=site), name=site, **options)


def frame(report, name):
    return report.tables[name].frame


def test_a_report_holds_everything_and_is_the_same_twice(model, text, tmp_path):
    dictionaries = [random_dictionary(24, 16, name="one"), random_dictionary(30, 16, seed=1, name="two")]
    report = pathology(dictionaries, model=model, text=text, **FAST)
    expected = {"comparison", "interventions", "positions", "when", "tokens", "single_token", "far_out"}
    assert set(report.tables) == expected | {"equal_damage", "lengths", "sensitivity"}
    assert {"ratios", "interventions", "histograms", "positions", "single_token", "far_out"} < set(report.plots)
    again = pathology(dictionaries, model=model, text=text, **FAST)
    for name in report.tables:
        assert frame(report, name).equals(frame(again, name)), name
    report.save(tmp_path / "out")
    table = frame(report, "interventions")
    assert len(table) == 2 * 2 * len(INTERVENTIONS)
    for name in ("KL", "CE increase", "KL ratio"):
        part = table.dropna(subset=[name])
        assert (part[f"{name} low"] <= part[name] + 1e-9).all() and (part[name] <= part[f"{name} high"] + 1e-9).all()


def test_kl_and_ce_of_the_report_are_those_of_whole_forwards(model, text):
    dictionary = random_dictionary(24, 16)
    report = pathology([dictionary], model=model, text=text, **SPARSE)
    tokens = text.as_split("heldout").sample(model.tokenizer, 16, 6)
    clean = model.forward(tokens, [SITE])
    p = clean.logits.log_softmax(-1)
    table = frame(report, "interventions").query("tokens == 'all'").set_index("intervention")
    x, x_hat = clean.activations[SITE], dictionary.reconstruct(clean.activations[SITE])
    for name, new in (("reconstruction", x_hat), ("zero", 0 * x)):
        q = model.resume(new, SITE).logits.log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1)[:, :-1].mean()
        ce = (p - q)[:, :-1].gather(2, tokens[:, 1:, None]).mean()
        assert table["KL"][name] == pytest.approx(float(kl), rel=1e-4)
        assert table["CE increase"][name] == pytest.approx(float(ce), rel=1e-3, abs=1e-5)


def test_a_perfect_dictionary_does_no_damage_and_has_no_ratio(model, text):
    perfect = identity_dictionary(16, metadata=Metadata(site=SITE), name="perfect")
    report = pathology([perfect], model=model, text=text, **SPARSE)
    table = frame(report, "interventions").set_index("intervention")
    assert table["KL"][["reconstruction", *BASELINES]].abs().max() < 1e-6


@pytest.mark.parametrize(
    "site",
    [
        "blocks.1.hook_resid_mid",
        "blocks.2.hook_resid_post",
        "blocks.1.hook_attn_out",
        "blocks.0.hook_mlp_out",
        "transformer.h.1.attn.c_proj:in",
    ],
)
def test_every_kind_of_site_is_served(model, text, site):
    report = pathology([at(site)], model=model, text=text, **(FAST | {"sweep_contexts": 1}))
    assert frame(report, "comparison")["KL"][0] > 0


def test_several_sites_share_a_report(model, text):
    report = pathology([at(SITE), at("blocks.2.hook_attn_out")], model=model, text=text, **SPARSE)
    assert "sites" in report.plots
    alone = pathology([at(SITE)], model=model, text=text, **SPARSE)
    assert frame(report, "comparison")["KL"][0] == pytest.approx(frame(alone, "comparison")["KL"][0], rel=1e-5)


def test_a_stitched_dictionary_stands_beside_its_parents(model, text):
    small, large = (random_dictionary(24, 16, activation=TopK(4), seed=s, name=n) for s, n in ((0, "a"), (1, "b")))
    child = join(small, large, torch.arange(24) < 5)
    report = pathology([small, large, child], model=model, text=text, **SPARSE)
    assert list(frame(report, "parents")["made from"]) == ["a", "b"]
    comparison = frame(report, "comparison").set_index("dictionary")["over ε-random"]
    quotient = frame(report, "parents")["over ε-random, quotient"][0]
    assert quotient == pytest.approx(comparison["stitched"] / comparison["a"])


def test_an_interrupted_analysis_reports_what_is_complete(model, text, monkeypatch):
    monkeypatch.setattr(running, "BATCH_TOKENS", 32)
    own, calls = running._batch, []

    def stopping(*args):
        calls.append(1)
        if len(calls) == at_batch:
            raise KeyboardInterrupt
        return own(*args)

    monkeypatch.setattr(running, "_batch", stopping)
    at_batch = 3
    report = pathology([random_dictionary(24, 16)], model=model, text=text, **FAST)
    assert any("after 4 of 6 sequences" in warning for warning in report.warnings)
    assert report.settings["contexts"] == 4
    calls.clear()
    at_batch = 1
    with pytest.raises(KeyboardInterrupt):
        pathology([random_dictionary(24, 16)], model=model, text=text, **FAST)


def damaged(name="damaged"):
    dictionary = random_dictionary(24, 16, name=name)
    dictionary.b_out[3] = torch.nan
    return dictionary


@pytest.mark.parametrize(
    ("dictionary", "options", "says"),
    [
        (at("blocks.7.hook_resid_pre"), {}, "blocks 0 to 2"),
        (at("lm_head:in"), {}, "outside the blocks"),
        (random_dictionary(24, 12, name="narrow"), {}, "narrow.*width 12.*16"),
        (damaged(), {}, r"damaged.*of \d+ of \d+ tokens is not finite"),
        (at(SITE), {"contexts": 1}, "contexts is 1"),
        (at(SITE), {"draws": 0}, "draws is 0"),
        (at(SITE), {"random_points": 1}, "random_points is 1"),
        (at(SITE), {"position": 15}, "position is 15"),
        (at(SITE), {"context_length": 33}, "context is 33"),
        (at(SITE), {"text": "no/such/text"}, "no/such/text"),
    ],
)
def test_bad_input_is_named(model, text, dictionary, options, says):
    with pytest.raises(DictlabError, match=says):
        pathology([dictionary], **({"model": model, "text": text} | SPARSE | options))


def test_a_text_of_less_than_a_context_is_named(model, tmp_path):
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(DictlabError, match=r"short\.txt"):
        pathology([at(SITE)], model=model, text=str(tmp_path / "short.txt"), **SPARSE)


def test_sequences_can_begin_with_the_beginning_of_text(model, text):
    report = pathology([at(SITE)], model=model, text=text, prepend_bos=True, **(SPARSE | {"min_occurrences": 1}))
    first = frame(report, "tokens").set_index("id")
    assert first["count"][model.tokenizer.bos_token_id] >= 6


def test_norm_only_is_far_below_random_noise_on_a_shrinking_dictionary(model, text):
    """The shipped dictionaries show it in docs/results; here one that shrinks and errs by chance."""
    torch.manual_seed(0)
    eye = identity_dictionary(16, metadata=Metadata(site=SITE), name="shrinking")
    shrinking = replace(eye, W_dec=0.9 * eye.W_dec + 0.1 * torch.randn_like(eye.W_dec))
    table = frame(pathology([shrinking], model=model, text=text, **SPARSE), "interventions").set_index("intervention")
    assert table["KL"]["norm only"].max() < 0.3 * table["KL"]["ε-random"].min()
