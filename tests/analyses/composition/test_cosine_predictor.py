"""Curves of the cosine rule, against scikit-learn and against a search through every threshold."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, roc_auc_score, roc_curve

from analyses.composition.cosine_predictor import (
    BOTH,
    Labelled,
    areas,
    areas_of,
    best,
    counts,
    groups,
    interval,
    kinds_of,
    prediction_table,
    resampled,
    threshold_table,
    thresholds,
)
from dictlab.dictionary.activation_functions import ReLU, TopK, Union


def random_latents(n=40, seed=0, ties=False):
    generator = np.random.default_rng(seed)
    cosine = generator.random(n)
    novel = generator.random(n) < 0.8 - 0.6 * cosine
    cosine = cosine.round(1) if ties else cosine
    novel[:2] = True, False
    return Labelled(cosine, novel, generator.exponential(size=n))


def table_of(given, dead=0):
    """The columns of a latent table that predictions are made of."""
    n = len(given.cosine)
    change = np.where(given.novel, -given.weight, given.weight)
    frame = pd.DataFrame(
        {
            "latent": np.arange(n),
            "class": np.where(given.novel, "novel", "reconstruction"),
            "change in MSE": change,
            "standard error": 0.4,
            "max cosine": given.cosine,
        }
    )
    frame.loc[: dead - 1, "class"] = "dead"
    return frame


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=30, deadline=None)
def test_areas_of_weighted_latents_are_those_of_scikit_learn(seed, ties):
    given = random_latents(seed=seed, ties=ties)
    times = np.random.default_rng(seed).multinomial(40, np.full(40, 1 / 40), size=6).astype(float)
    times = times[[(t[given.novel] > 0).any() and (t[~given.novel] > 0).any() for t in times]]
    found = areas_of(counts(given, times))
    for i, own in enumerate(times):
        weight = own * given.weight
        expected = (
            roc_auc_score(given.novel, -given.cosine, sample_weight=weight),
            average_precision_score(given.novel, -given.cosine, sample_weight=weight),
            average_precision_score(~given.novel, given.cosine, sample_weight=weight),
        )
        np.testing.assert_allclose([area[i] for area in found], expected, rtol=1e-9)


def test_areas_of_the_sample_are_those_of_each_drawn_once():
    given = random_latents(ties=True)
    np.testing.assert_allclose(areas(given), [a[0] for a in areas_of(counts(given, np.ones((1, 40))))])


def test_perfect_and_hopeless_cosines_have_areas_one_and_zero():
    novel = np.arange(10) < 4
    perfect = Labelled(np.linspace(0, 1, 10), novel, np.ones(10))
    assert areas(perfect) == pytest.approx((1, 1, 1))
    assert areas(perfect._replace(cosine=1 - perfect.cosine))[0] == 0
    assert areas(perfect._replace(cosine=np.full(10, 0.5))) == pytest.approx((0.5, 0.4, 0.6))


@pytest.mark.parametrize("ties", [False, True])
def test_the_best_thresholds_are_those_of_a_search_through_all(ties):
    given = random_latents(seed=3, ties=ties)
    at = thresholds(given.cosine)
    found = best(counts(given, np.ones((1, 40))), at)
    fall_out, recall, _ = roc_curve(given.novel, -given.cosine, sample_weight=given.weight)

    def youden(t):
        below = given.cosine < t
        weight = [
            given.weight[which].sum()
            for which in (below & given.novel, given.novel, below & ~given.novel, ~given.novel)
        ]
        return weight[0] / weight[1] - weight[2] / weight[3]

    assert youden(found["J"][0]) == pytest.approx((recall - fall_out).max())
    for name, label in (("F1 (novel)", True), ("F1 (reconstruction)", False)):
        scores = [
            f1_score(given.novel, given.cosine < t, pos_label=label, sample_weight=given.weight, zero_division=0)
            for t in at
        ]
        own = f1_score(given.novel, given.cosine < found[name][0], pos_label=label, sample_weight=given.weight)
        assert own == pytest.approx(max(scores))


def test_the_threshold_of_two_clean_groups_lies_in_the_gap_in_every_resample():
    cosine = np.concatenate([np.linspace(0.1, 0.3, 20), np.linspace(0.6, 0.9, 20)])
    given = Labelled(cosine, cosine < 0.5, np.ones(40))
    frame = threshold_table({"all": table_of(given)}, 0.7, 0)
    row = frame[(frame["rule"] == "best J") & (frame["weighting"] == "plain")].iloc[0]
    assert row["threshold"] == pytest.approx(0.45) and row["low"] <= 0.45 <= row["high"]
    assert row["low"] > 0.3 and row["high"] < 0.7 and row["accuracy"] == row["J"] == 1


def test_confusions_at_the_given_threshold_are_those_of_scikit_learn():
    given = random_latents(seed=5)
    frame = threshold_table({"all": table_of(given)}, 0.7, 0)
    assert set(frame["weighting"]) == set(BOTH)
    names = [f"{a}, called {b}" for a in ("reconstruction", "novel") for b in ("reconstruction", "novel")]
    expected = confusion_matrix(given.novel, given.cosine < 0.7).ravel()
    for _, row in frame[frame["rule"] == "given"].iterrows():
        assert row[names].tolist() == expected.tolist() and row["threshold"] == 0.7
    weighted = frame[(frame["rule"] == "given") & (frame["weighting"] == "by effect")].iloc[0]
    hit = given.weight[(given.cosine < 0.7) & given.novel].sum() / given.weight[given.novel].sum()
    assert weighted["sensitivity"] == pytest.approx(hit)


def test_intervals_cover_the_area_of_a_planted_distribution():
    """Cosines of two normal classes one standard deviation apart: the area is Phi(1 / sqrt 2) = 0.760."""
    hits = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        novel = generator.random(80) < 0.4
        given = Labelled(generator.normal(size=80) - novel, novel, np.ones(80))
        low, high = interval(np.concatenate([areas_of(c).roc for c in resampled(given, seed)]))
        hits += low <= 0.7602 <= high
    assert hits >= 34


def test_equal_seeds_draw_equal_latents_for_both_weightings():
    given = random_latents()
    one, other = (next(resampled(g, 7)) for g in (given._replace(weight=np.ones(40)), given))
    plain, weighted = (np.diff(c.novel_below, axis=1) > 0 for c in (one, other))
    assert (plain == weighted).all()


def test_a_single_class_has_no_areas_and_no_thresholds():
    given = random_latents()._replace(novel=np.zeros(40, dtype=bool))
    table = prediction_table({"all": table_of(given)}, 0)
    assert table[[c for c in table if "AUC" in c]].isna().all(axis=None)
    assert threshold_table({"all": table_of(given)}, 0.7, 0).empty
    nobody = prediction_table({"all": table_of(given).head(0)}, 0)
    assert nobody["n"].tolist() == [0, 0] and nobody["share novel"].isna().all()


def test_groups_leave_out_the_dead_and_the_doubtful():
    frame = table_of(random_latents(), dead=3)
    found = groups(frame, ["topk"] * 40)
    assert list(found) == ["all", "certain (> 2 s.e.)"] and len(found["all"]) == 37
    assert (found["certain (> 2 s.e.)"]["change in MSE"].abs() > 0.8).all()


def test_latents_of_several_activation_functions_are_groups_of_their_own():
    union = Union(((3, TopK(1)), (2, Union(((1, ReLU()), (1, TopK(1))), emits=np.ones(2)))), emits=np.ones(5))
    kinds = kinds_of(union, 5)
    assert kinds == ["topk"] * 3 + ["relu", "topk"]
    frame = table_of(random_latents(n=5))
    assert groups(frame, kinds)["relu latents"]["latent"].tolist() == [3]
