"""Curves of the cosine rule, against scikit-learn and against a search through every threshold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, roc_auc_score, roc_curve

from analyses.composition.insertion.cosine_curves import (
    LabelledCosines,
    areas,
    areas_of,
    best_thresholds,
    candidate_thresholds,
    counts,
    resampled_weights,
)
from analyses.composition.insertion.cosine_predictor import (
    GIVEN,
    WEIGHTINGS,
    groups,
    kinds_of,
    prediction_areas,
    threshold_rules,
)
from analyses.composition.insertion.single_insertions import LatentEffects
from dictlab.dictionary.activation_functions import ReLU, TopK
from dictlab.dictionary.union import Union
from dictlab.numerics.statistics import interval


def random_latents(n=40, seed=0, ties=False):
    generator = np.random.default_rng(seed)
    cosine = generator.random(n)
    novel = generator.random(n) < 0.8 - 0.6 * cosine
    cosine = cosine.round(1) if ties else cosine
    novel[:2] = True, False
    return LabelledCosines(cosine, novel, generator.exponential(size=n))


def effects_of(given):
    """Alive latents that predictions are made of."""
    n = len(given.cosine)
    change = np.where(given.novel, -given.weight, given.weight)
    return LatentEffects(np.arange(n), change, np.full(n, 0.4), np.ones(n), given.cosine, given.novel, given.novel)


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
    perfect = LabelledCosines(np.linspace(0, 1, 10), novel, np.ones(10))
    assert areas(perfect) == pytest.approx((1, 1, 1))
    assert areas(perfect._replace(cosine=1 - perfect.cosine))[0] == 0
    assert areas(perfect._replace(cosine=np.full(10, 0.5))) == pytest.approx((0.5, 0.4, 0.6))


@pytest.mark.parametrize("ties", [False, True])
def test_the_best_thresholds_are_those_of_a_search_through_all(ties):
    given = random_latents(seed=3, ties=ties)
    at = candidate_thresholds(given.cosine)
    found = best_thresholds(counts(given, np.ones((1, 40))), at)
    false_positive_rate, recall, _ = roc_curve(given.novel, -given.cosine, sample_weight=given.weight)

    def youden(t):
        below = given.cosine < t
        weight = [
            given.weight[which].sum()
            for which in (below & given.novel, given.novel, below & ~given.novel, ~given.novel)
        ]
        return weight[0] / weight[1] - weight[2] / weight[3]

    assert youden(found["J"][0]) == pytest.approx((recall - false_positive_rate).max())
    for name, label in (("F1 (novel)", True), ("F1 (reconstruction)", False)):
        scores = [
            f1_score(given.novel, given.cosine < t, pos_label=label, sample_weight=given.weight, zero_division=0)
            for t in at
        ]
        own = f1_score(given.novel, given.cosine < found[name][0], pos_label=label, sample_weight=given.weight)
        assert own == pytest.approx(max(scores))


def test_the_threshold_of_two_clean_groups_lies_in_the_gap_in_every_resample():
    cosine = np.concatenate([np.linspace(0.1, 0.3, 20), np.linspace(0.6, 0.9, 20)])
    given = LabelledCosines(cosine, cosine < 0.5, np.ones(40))
    rules = threshold_rules({"all": effects_of(given)}, 0.7, 0)
    rule = next(rule for rule in rules if rule.rule == "best J" and rule.weighting == "plain")
    assert rule.threshold == pytest.approx(0.45) and rule.low <= 0.45 <= rule.high
    assert rule.low > 0.3 and rule.high < 0.7 and rule.rates["accuracy"] == rule.rates["J"] == 1


def test_confusions_at_the_given_threshold_are_those_of_scikit_learn():
    given = random_latents(seed=5)
    rules = [rule for rule in threshold_rules({"all": effects_of(given)}, 0.7, 0) if rule.rule == GIVEN]
    assert [rule.weighting for rule in rules] == list(WEIGHTINGS)
    below = given.cosine < 0.7
    (kept, called), (missed, found) = confusion_matrix(given.novel, below)
    assert all(rule.confusion == (found, missed, called, kept) and rule.threshold == 0.7 for rule in rules)
    hit = given.weight[below & given.novel].sum() / given.weight[given.novel].sum()
    assert rules[1].rates["sensitivity"] == pytest.approx(hit)


def test_intervals_cover_the_area_of_a_planted_distribution():
    """Cosines of two normal classes one standard deviation apart: the area is Phi(1 / sqrt 2) = 0.760."""
    hits = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        novel = generator.random(80) < 0.4
        given = LabelledCosines(generator.normal(size=80) - novel, novel, np.ones(80))
        low, high = interval(np.concatenate([areas_of(c).roc for c in resampled_weights(given, seed)]))
        hits += low <= 0.7602 <= high
    assert hits >= 34


def test_equal_seeds_draw_equal_latents_for_both_weightings():
    given = random_latents()
    one, other = (next(resampled_weights(g, 7)) for g in (given._replace(weight=np.ones(40)), given))
    plain, weighted = (np.diff(c.novel_below, axis=1) > 0 for c in (one, other))
    assert (plain == weighted).all()


def test_a_single_class_has_no_areas_and_no_thresholds():
    given = random_latents()._replace(novel=np.zeros(40, dtype=bool))
    for one in prediction_areas({"all": effects_of(given)}, 0):
        assert np.isnan([*one.roc, *one.novel, *one.reconstruction]).all()
    assert threshold_rules({"all": effects_of(given)}, 0.7, 0) == []
    nobody = prediction_areas({"all": effects_of(given).at(np.zeros(40, dtype=bool))}, 0)
    assert [one.n for one in nobody] == [0, 0] and all(np.isnan(one.share_novel) for one in nobody)


def test_groups_leave_out_the_doubtful():
    alive = effects_of(random_latents())
    parts = groups(alive, ["topk"] * 40)
    assert list(parts) == ["all", "certain (> 2 s.e.)"] and len(parts["all"].latent) == 40
    certain = parts["certain (> 2 s.e.)"]
    assert (np.abs(certain.change) > 0.8).all() and len(certain.latent) == (np.abs(alive.change) > 0.8).sum()


def test_latents_of_several_activation_functions_are_groups_of_their_own():
    union = Union(((3, TopK(1)), (2, Union(((1, ReLU()), (1, TopK(1))), emits=np.ones(2)))), emits=np.ones(5))
    kinds = kinds_of(union, 5)
    assert kinds == ["topk"] * 3 + ["relu", "topk"]
    assert groups(effects_of(random_latents(n=5)), kinds)["relu latents"].latent.tolist() == [3]
