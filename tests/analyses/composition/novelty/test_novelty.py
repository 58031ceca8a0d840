"""Novelty: one pass against one brute-force reconstruction a latent, planted truth, seeds, and bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import normalize

from analyses.composition.insertion.insertion_effects import effects_in_pool, insertion_effects
from analyses.composition.insertion.insertion_tables import agreement_table, latent_table
from analyses.composition.insertion.single_insertions import (
    SingleInsertions,
    insert_each,
    nearest_alive,
    novel_with_a_twin,
)
from analyses.composition.novelty.novelty import novelty
from analyses.pool.dictionary_chain import encode_chain
from dictlab import Dictionary, DictlabError, Metadata, ReLU, TopK
from dictlab.data.text import Text
from dictlab.dictionary.normalisation import LayerNorm, Scale
from tests.planted import SITE, identity_dictionary, random_dictionary, sparse_data, tiny_model


def brute_force(small: Dictionary, large: Dictionary, x: torch.Tensor) -> torch.Tensor:
    """Change in MSE of SMALL's reconstruction with each latent of LARGE added to it, one at a time, in float64."""
    small, large, x = small.to(dtype=torch.float64), large.to(dtype=torch.float64), x.double()
    scale = torch.as_tensor(large.normalisation(x)[1].scale)
    codes, base = large.encode(x).dense(), small.reconstruct(x)
    before = (x - base).square().mean()
    added = [(base + scale * codes[:, [i]] * large.W_dec[i]) for i in range(large.n_latents)]
    return torch.stack([(x - x_hat).square().mean() - before for x_hat in added])


@pytest.mark.parametrize("activation", [ReLU(), TopK(4)])
@pytest.mark.parametrize("normalisation", [None, Scale(0.2), LayerNorm()])
def test_one_pass_equals_brute_force(activation, normalisation):
    """1e-5 relative to the largest effect: float32 codes, sums in float64."""
    options = {"activation": activation, "normalisation": normalisation}
    small, large = random_dictionary(20, 8, seed=1, **options), random_dictionary(64, 8, seed=2, **options)
    x = 2 * torch.randn(12, 25, 8, generator=torch.Generator().manual_seed(0))
    found = insertion_effects(small, large, x.split(5))
    expected = brute_force(small, large, x.flatten(0, 1))
    assert (found.change - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (found.tokens, found.sequences) == (300, 12)


def test_the_best_scale_is_where_the_effect_is_smallest():
    small, large = random_dictionary(20, 8, seed=1), random_dictionary(10, 8, seed=2)
    x = torch.randn(4, 50, 8, generator=torch.Generator().manual_seed(0))
    found = insertion_effects(small, large, [x])
    step = 1e-3

    def change(scale: torch.Tensor) -> torch.Tensor:
        return insertion_effects(small, replace(large, W_dec=large.W_dec * scale[:, None]), [x]).change

    best = found.scale.float()
    assert (change(best) <= change(best + step)).all() and (change(best) <= change(best - step)).all()
    assert torch.equal(found.change < 0, found.scale > 0.5)


def test_standard_errors_are_those_of_the_mean_over_sequences():
    small, large = random_dictionary(20, 8, seed=1), random_dictionary(10, 8, seed=2)
    x = torch.randn(30, 20, 8, generator=torch.Generator().manual_seed(0))
    found = insertion_effects(small, large, x.split(7))
    by_sequence = torch.stack([insertion_effects(small, large, [sequence[None]]).change for sequence in x])
    torch.testing.assert_close(found.change, by_sequence.mean(dim=0), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found.error, by_sequence.std(dim=0) / 30**0.5, rtol=1e-5, atol=1e-9)


def planted() -> tuple[Dictionary, Dictionary, torch.Tensor]:
    """SMALL knows 20 of the 32 directions that the data is made of; LARGE knows them all."""
    x, directions = sparse_data(4000, n=32, d=32, seed=3)
    centre = torch.full((32,), 0.7)

    def knows(kept: int, name: str) -> Dictionary:
        rows = directions[:kept]
        return Dictionary(rows.T.clone(), torch.full((kept,), -0.1), rows, centre, centre, ReLU(), name=name)

    return knows(20, "small"), knows(32, "large"), x.reshape(40, 100, 32)


def test_directions_that_small_lacks_are_novel_and_those_it_has_are_not():
    small, large, x = planted()
    pair = insert_each(small, large, [x], 0.9)
    assert pair.novel.nonzero().squeeze(1).tolist() == pair.novel_by_cosine.nonzero().squeeze(1).tolist()
    assert pair.novel.nonzero().squeeze(1).tolist() == list(range(20, 32))
    table = latent_table(pair).sort_values("latent")
    assert (table["class"][table["latent"] < 20] == "reconstruction").all()
    assert (table["class"][table["latent"] >= 20] == "novel").all()
    assert (table["class by cosine"] == table["class"]).all()
    assert agreement_table(pair)["latents"].tolist() == [12, 20]


def test_dead_latents_are_called_dead_by_both_rules():
    small, large, x = planted()
    large = replace(large, b_enc=torch.where(torch.arange(32) == 25, -100.0, large.b_enc))
    pair = insert_each(small, large, [x], 0.9)
    assert not pair.novel[25] and not pair.novel_by_cosine[25] and 25 not in pair.alive.latent
    table = latent_table(pair)
    dead = table[table["latent"] == 25].iloc[0]
    assert dead["class"] == dead["class by cosine"] == "dead"
    assert dead["change in MSE"] == 0


def test_a_dictionary_adds_nothing_to_itself():
    """Each latent is counted twice: the error can only rise, unless activations are shrunk by half; these are not."""
    _, large, x = planted()
    refit = replace(large, b_enc=torch.full((32,), 0.0))
    effects = insertion_effects(refit, refit, [x])
    cosines = nearest_alive(refit, refit).cosine
    torch.testing.assert_close(cosines, torch.ones_like(cosines))
    assert (effects.change > 0).all()


@pytest.mark.parametrize("activations", [(TopK(4), TopK(6)), (ReLU(), TopK(6))])
@pytest.mark.parametrize("normalisation", [None, Scale(0.2), LayerNorm()])
def test_effects_out_of_the_codes_of_a_pool_are_those_of_encoding_again(activations, normalisation):
    """Into SMALL, and into what is stitched so far. LARGE is folded, lest a code at its threshold fire in one alone."""
    options = {"normalisation": normalisation}
    kinds = (*activations, ReLU())
    made = [random_dictionary(n, 8, seed=n, activation=k, **options) for n, k in zip((20, 30, 25), kinds, strict=True)]
    x = (2 * torch.randn(12, 25, 8, generator=torch.Generator().manual_seed(0)) + 1).split(5)
    chain = encode_chain(made, x)
    into = chain.mask_of(0) | (chain.mask_of(1) & (np.arange(75) % 3 == 0))
    for number, mask, small in ((1, chain.mask_of(0), made[0]), (2, into, chain.subset(into, None, "so far"))):
        large = chain.subset(chain.mask_of(number), None, "large")
        found, expected = effects_in_pool(chain, mask, number), insertion_effects(small, large, x)
        for name in ("change", "error", "scale", "firing_rate", "strength", "mse", "stretch"):
            one, other = (torch.as_tensor(getattr(effects, name)) for effects in (found, expected))
            one, other = (torch.nan_to_num(values.double()) for values in (one, other))
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()), msg=name)
        assert (found.tokens, found.sequences) == (300, 12) and torch.equal(found.dead, expected.dead)


# Planted truth, found again


def knows(directions, known, activation, seed, bias):
    """A dictionary of some of the data's directions, each turned at random to a cosine of about 0.9."""
    generator = torch.Generator().manual_seed(seed)
    rows = directions[known]
    turned = rows + 0.5 * torch.randn(rows.shape, generator=generator) / rows.shape[1] ** 0.5
    rows, centre = normalize(turned, dim=1), torch.full((rows.shape[1],), 0.7)
    return Dictionary(rows.T.clone(), torch.full((len(rows),), bias), rows, centre, centre, activation)


@pytest.mark.parametrize(("activation", "bias"), [(TopK(3), 0.0), (ReLU(), -0.4)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_known_directions_are_told_from_novel_ones_with_an_area_above_099(activation, bias, seed):
    """128 directions in 64 dimensions, two thirds of which SMALL knows; by the measured effect and by the cosine."""
    x, directions = sparse_data(20_000, n=128, d=64, active=3, seed=seed)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(seed))
    small = knows(directions, order[:85], activation, 10 + seed, bias)
    large = knows(directions, torch.arange(128), activation, 20 + seed, bias)
    latents = insert_each(small, large, [x.view(200, 100, 64)], 0.7).latents
    novel = np.isin(latents.latent, order[85:])
    assert roc_auc_score(novel, -latents.change) > 0.99
    assert roc_auc_score(novel, -latents.cosine) > 0.99
    assert (latents.novel == novel).mean() > 0.9
    assert (latents.novel_by_cosine == novel).all()


def test_a_latent_without_a_direction_is_dead_by_both_rules():
    small, large, x = planted()
    large = replace(large, W_dec=torch.where(torch.arange(32)[:, None] == 25, 0.0, large.W_dec))
    row = latent_table(insert_each(small, large, [x], 0.9)).set_index("latent").loc[25]
    assert row["class"] == row["class by cosine"] == "dead" and row["firing rate"] > 0


def test_mean_activations_and_smalls_error_are_those_of_the_sample():
    small, large, x = planted()
    effects = insertion_effects(small, large, x.split(7))
    codes = large.encode(x).dense()
    torch.testing.assert_close(effects.strength.float(), codes.sum(0) / (codes > 0).sum(0))
    assert effects.mse == pytest.approx(float((x - small.reconstruct(x)).square().mean()), rel=1e-6)


@pytest.mark.parametrize("normalisation", [None, Scale(0.2), LayerNorm()])
def test_the_stretch_is_the_factor_of_the_latents_that_serves_best(normalisation):
    small = random_dictionary(20, 8, seed=1, normalisation=normalisation)
    x = torch.randn(6, 30, 8, generator=torch.Generator().manual_seed(0))
    best = insertion_effects(small, small, [x]).stretch

    def error(factor: float) -> float:
        return insertion_effects(replace(small, W_dec=factor * small.W_dec), small, [x]).mse

    assert error(best) < min(error(best - 1e-2), error(best + 1e-2))
    assert insertion_effects(replace(small, W_dec=best * small.W_dec), small, [x]).stretch == pytest.approx(1, abs=1e-3)


def test_a_dictionary_that_shrinks_finds_its_own_latents_novel_and_the_report_warns(model, text):
    """x = relu(x) - relu(-x), at two fifths of its length: each latent given once more brings it to four fifths."""
    whole = identity_dictionary(16, metadata=Metadata(site=SITE), name="whole")
    short = replace(whole, W_dec=0.4 * whole.W_dec, name="short")
    report = reported(model, text, short, replace(short, name="again"))
    assert "100% of 32" in report.summary
    assert any("short shrinks" in warning and "2.50 times" in warning for warning in report.warnings)
    assert not any("shrinks" in warning for warning in reported(model, text, whole, short).warnings)


def test_latents_given_twice_are_twins_and_each_counted_alone():
    small, large, x = planted()
    both = torch.cat([torch.arange(32), torch.tensor([25, 26])])
    large = replace(large, W_enc=large.W_enc[:, both], b_enc=large.b_enc[both], W_dec=large.W_dec[both])
    effects = insertion_effects(small, large, [x])
    torch.testing.assert_close(effects.change[[25, 26]], effects.change[[32, 33]])
    assert novel_with_a_twin(SingleInsertions(small, large, effects, nearest_alive(large, small), 0.9)) == 4


def test_codes_that_are_not_finite_are_refused():
    small, large, x = planted()
    with pytest.raises(DictlabError, match="large: its codes are not all finite"):
        insertion_effects(small, replace(large, b_enc=torch.full((32,), torch.inf)), [x])
    with pytest.raises(DictlabError, match="small: its reconstruction of 4000 of 4000 tokens is not finite"):
        insertion_effects(replace(small, b_out=torch.full((32,), torch.nan)), large, [x])


# The report


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for i in range(40):
        (folder / f"{i}.txt").write_text(f"the quick brown fox {i} jumps over the lazy dog.\n" * 40)
    return Text.files(folder)


def one_of(seed, n=20, **changes):
    about = Metadata(site=SITE, seed=seed, objective="local")
    made = random_dictionary(n, 16, seed=seed, activation=ReLU(), name=f"n{n}s{seed}", metadata=about)
    return replace(made, **changes)


def reported(model, text, *given, **options):
    return novelty(*given, model=model, text=text, **({"tokens": 2048, "cards": 0, "contexts": 4} | options))


def test_the_report_has_shares_curves_cards_and_behaviour(model, text, tmp_path):
    report = reported(model, text, one_of(1), one_of(2, 40), cards=3, ce_latents=4, latent_choice="random")
    assert set(report.tables) == {
        "latents", "shares", "behaviour", "portraits", "prediction", "thresholds", "agreement",
    }  # fmt: skip
    assert set(report.plots) == {"effects", "prediction", "behaviour"} and len(report.cards["portraits"].cards) == 3
    assert len(report.tables["behaviour"].frame) == 4
    latents = report.tables["latents"].frame
    alive = latents[latents["class"] != "dead"]
    area = roc_auc_score(alive["class"] == "novel", -alive["max cosine"])
    assert report.tables["prediction"].frame["ROC AUC"][0] == pytest.approx(area) and f"{area:.2f}" in report.summary
    counts = report.tables["thresholds"].frame.iloc[0].filter(like=", called ")
    assert counts.sum() == len(alive) == report.tables["agreement"].frame["latents"].sum()
    report.save(tmp_path / "out")


def test_the_most_useful_are_the_novel_ones_with_the_largest_decrease(model, text):
    report = reported(model, text, one_of(1), one_of(2, 40), cards=5, ce_latents=2)
    novel = report.tables["latents"].frame.query("`class` == 'novel'").nsmallest(5, "change in MSE")
    assert report.tables["portraits"].frame["latent"].tolist() == novel["latent"].tolist()
    assert report.tables["behaviour"].frame["latent"].tolist() == novel["latent"].tolist()[:2]


def test_latents_that_are_named_are_looked_at(model, text):
    report = reported(model, text, one_of(1), one_of(2, 40), which_latents=[7, 3, 7], cards=9)
    for name in ("portraits", "behaviour"):
        assert report.tables[name].frame["latent"].tolist() == [7, 3]
    with pytest.raises(DictlabError, match=r"n40s2 has latents 0 to 39, and no 40"):
        reported(model, text, one_of(1), one_of(2, 40), which_latents=[40])


def test_two_seeds_are_recognised_as_the_control_itself(model, text):
    report = reported(model, text, one_of(1), one_of(2))
    assert "between two seeds" in report.title and "This is the seed control" in report.summary
    assert report.tables["shares"].frame["relation"].tolist() == ["cross-seed"]
    other = reported(model, text, one_of(1), one_of(2, activation=TopK(3)))
    assert "between two seeds" not in other.title and "seed control" not in other.summary


def test_a_control_is_inserted_into_the_one_of_its_width_and_stands_beside_the_share(model, text):
    small, large = one_of(1), one_of(2, 40)
    for control, of in ((one_of(3), small), (one_of(4, 40), large)):
        report = reported(model, text, small, large, control=control)
        rows, alone = report.tables["shares"].frame, reported(model, text, of, control).tables["shares"].frame
        assert rows["inserted"].tolist() == ["n40s2 in n20s1", f"{control.name} in {of.name}"]
        assert rows.iloc[1].equals(alone.iloc[0])
        assert "Of the control's latents" in report.summary and "control" in report.plots and not report.warnings
    with pytest.raises(DictlabError, match=r"control n30s5 has 30 latents; expected another seed of n20s1 \(20\)"):
        reported(model, text, small, large, control=one_of(5, 30))


def test_a_control_that_is_no_other_seed_is_said_to_be_none(model, text):
    small, large = one_of(1), one_of(2, 40)
    for control, says in (
        (one_of(3, activation=TopK(3)), "differs from n20s1 in more than its seed (cross-activation)"),
        (replace(one_of(1), name="copy"), "copy is not known to have another seed than n20s1"),
    ):
        (warning,) = reported(model, text, small, large, control=control).warnings
        assert says in warning


# Bad input


def test_a_dictionary_against_itself_has_nothing_novel_by_cosine_and_is_named_as_such(model, text):
    report = reported(model, text, one_of(1), replace(one_of(1), name="copy"))
    latents = report.tables["latents"].frame
    np.testing.assert_allclose(latents["max cosine"], 1, atol=1e-6)
    assert (latents["class by cosine"] != "novel").all() and (latents["parent"] == latents["latent"]).all()
    assert any("same decoder" in warning for warning in report.warnings)


def test_one_dictionary_given_twice_is_refused(model, text):
    small = one_of(1)
    with pytest.raises(DictlabError, match="'n20s1': the same one was given twice"):
        reported(model, text, small, small)
    with pytest.raises(DictlabError, match="'n20s1', and were read from no file"):
        reported(model, text, small, one_of(1))


def test_a_dictionary_that_adds_nothing_is_refused(model, text):
    silent = one_of(2, 40, b_enc=torch.full((40,), -1e6))
    with pytest.raises(DictlabError, match="n40s2: none of its 40 latents adds anything on 2048 tokens"):
        reported(model, text, one_of(1), silent)
    with pytest.raises(DictlabError, match="n40s2: none of its 40 latents adds anything"):
        reported(model, text, one_of(1), one_of(2, 40, W_dec=torch.zeros(40, 16)))
    with pytest.raises(DictlabError, match="n20s1: none of its 20 latents is alive"):
        reported(model, text, one_of(1, firing_rate=torch.zeros(20)), one_of(2, 40))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 20), (20, 1)])
def test_a_single_latent_is_enough(model, text, n, m):
    report = reported(model, text, one_of(1, n), one_of(2, m), cards=2, ce_latents=1, latent_choice="random")
    assert len(report.tables["latents"].frame) == m
    if m == 1:
        assert "nothing for cosine to predict" in report.summary and "prediction" not in report.plots
    assert report.html()


def test_directions_of_length_0_and_a_single_sequence_are_said(model, text):
    large = one_of(2, 40)
    empty = replace(large, W_dec=torch.where(torch.arange(40)[:, None] < 2, 0.0, large.W_dec))
    report = reported(model, text, one_of(1), empty, tokens=32, cards=2, ce_latents=2, contexts=1)
    assert any("decoder direction of length 0" in warning for warning in report.warnings)
    assert report.tables["latents"].frame["standard error"].isna().all()
    assert report.tables["shares"].frame["dead"][0] >= 2


@pytest.mark.parametrize(
    ("options", "says"),
    [({"cards": -1}, "cards is -1"), ({"ce_latents": -3}, "ce_latents is -3"), ({"tokens": 5}, "tokens is 5")],
)
def test_numbers_that_make_no_sense_are_refused(model, text, options, says):
    with pytest.raises(DictlabError, match=says):
        reported(model, text, one_of(1), one_of(2, 40), **options)


def test_nothing_novel_leaves_no_cards_and_no_error(model, text):
    """LARGE overshoots everywhere."""
    small = one_of(1)
    large = replace(one_of(2, 40), W_dec=one_of(2, 40).W_dec * 1e3)
    report = reported(model, text, small, large, cards=3, ce_latents=3)
    assert "0% of" in report.summary and not report.cards and "behaviour" not in report.tables
