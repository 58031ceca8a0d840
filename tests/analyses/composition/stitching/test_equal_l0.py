"""Parents at a result's sparsity: curves of closed form, and refits against those of each dictionary by itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from analyses.composition.stitching.equal_l0 import SparsityCurve, at_equal_l0, levels_of, parents_at_levels
from analyses.composition.stitching.equal_l0_report import equal_l0_plot, equal_l0_sentence
from analyses.pool.dictionary_chain import encode_chain
from analyses.pool.one_competition import competition_steps
from analyses.pool.ridge_refit import refit_bias, refit_decoder
from analyses.pool.sparsity_levels import at_l0
from analyses.quality.measured_points import Point
from dictlab import TopK
from dictlab.dictionary.activation_functions import GroupMax
from dictlab.evaluation.metrics import Evaluation
from tests.dictionary.test_activation_functions import jumprelu
from tests.planted import random_dictionary

X = 2 * torch.randn(6, 50, 8, generator=torch.Generator().manual_seed(0)) + 1
HARDNESS = np.array([0.5, 1.0, 2.0, 1.5, 0.7])  # of five sequences, the same for every dictionary


def measured(name: str, l0: float, mse: float, noise: float = 0.0) -> Point:
    """A dictionary with this L0 and MSE on sequences of different hardness, of 100 tokens of 8 coordinates each."""
    tokens, generator = np.full(5, 100.0), np.random.default_rng(int(1000 * l0))
    error = HARDNESS / HARDNESS.mean() * (1 + noise * generator.normal(size=5))
    sums = {
        "tokens": tokens,
        "coordinates": 8 * tokens,
        "l0": l0 * tokens,
        "squared_error": 8 * tokens * mse * error / error.mean(),
        "variance": 80 * tokens,
    }
    return Point(random_dictionary(name=name), Evaluation(name, sums, torch.ones(5, 24), seed=0))


def curve(name: str, constant: float, levels) -> SparsityCurve:
    """error = constant / L0, a line in both logarithms."""
    return SparsityCurve(name, tuple(measured(name, level, constant / level) for level in levels))


@pytest.mark.parametrize(("l0", "parent", "expected"), [(10.0, "b", 4.0), (16.0, "b", 2.5), (17.9, "b", 40 / 17.9)])
def test_a_result_is_compared_with_the_best_parent_at_its_own_l0(l0, parent, expected):
    """Sequences are equally hard for all, so a paired ratio is the same in every resample."""
    curves = [curve("a", 60.0, (8, 16, 32)), curve("b", 40.0, (8, 16, 24))]
    compared = at_equal_l0(measured("result", l0, 2.0), curves)["mse"]
    assert compared.parent == parent and compared.ratio.frontier == pytest.approx(expected)
    assert compared.ratio.ratio[:3] == pytest.approx((2.0 / expected,) * 3)


def test_a_parent_that_is_best_at_one_sparsity_need_not_be_at_another():
    steep = SparsityCurve("steep", tuple(measured("steep", level, 1000 / level**2) for level in (8, 16, 32)))
    flat = curve("flat", 60.0, (8, 16, 32))
    assert at_equal_l0(measured("r", 10.0, 1.0), [steep, flat])["mse"].parent == "flat"
    assert at_equal_l0(measured("r", 30.0, 1.0), [steep, flat])["mse"].parent == "steep"


def test_below_every_curve_there_is_nothing_to_compare_with_and_beyond_its_end_that_is_said():
    curves = [curve("a", 60.0, (8, 16))]
    assert at_equal_l0(measured("r", 4.0, 1.0), curves) == {}
    beyond = at_equal_l0(measured("r", 20.0, 1.0), curves)["mse"].ratio
    assert beyond.place.kind == "level" and beyond.frontier == pytest.approx(60 / 16)


def test_a_curve_has_a_line_for_each_activation_function():
    """Of two rules that take turns along L0, one line would jump up and down."""
    points = [measured("p", level, 60 / level) for level in (8, 12, 16, 20)]
    threshold = jumprelu(24)
    mixed = tuple(
        replace(point, dictionary=replace(point.dictionary, activation=threshold)) if i % 2 else point
        for i, point in enumerate(points)
    )
    result = measured("result", 14.0, 4.0)
    figure = equal_l0_plot([result], result, [SparsityCurve("p", mixed)]).figure
    lines = {
        line.get_label(): line.get_xdata().tolist() for line in figure.axes[0].lines if "sparsities" in line.get_label()
    }
    kinds = [point.dictionary.activation.kind for point in mixed[:2]]
    assert lines == {f"p, {kinds[0]}, at other sparsities": [8, 16], f"p, {kinds[1]}, at other sparsities": [12, 20]}


def test_parents_are_measured_around_the_result_and_as_far_as_the_others_go():
    assert levels_of(16.0, 17.6, [24.0], ranked=True) == [12, 17, 18, 24]
    assert levels_of(16.0, 16.0, [], ranked=True) == [12]
    assert levels_of(40.0, 20.0, [45.0], ranked=False) == pytest.approx([19.4, 20.6, 30.0, 45.0])


@pytest.mark.parametrize("refit", ["decoder", "bias", "none"])
def test_a_parent_at_another_sparsity_is_refitted_as_it_would_be_alone(refit):
    parents = [
        random_dictionary(20, 8, seed=1, name="a", activation=TopK(4)),
        random_dictionary(30, 8, seed=2, name="b", activation=jumprelu(30, 1)),
    ]
    chain, batches = encode_chain(parents, [X]), [X]
    points, cautions = parents_at_levels(chain, batches, refit, result=6.4, others=[7.0])
    assert not cautions and {point.parent for point in points} == {"a", "b"}
    again = {"decoder": refit_decoder, "bias": refit_bias, "none": lambda dictionary, _: dictionary}[refit]
    flat = X.reshape(-1, 8)
    ranked = [point.dictionary for point in points if point.parent == "a"]
    assert [d.activation.k for d in ranked] == [3, 6, 7]
    for dictionary, k in zip(ranked, (3, 6, 7), strict=True):
        alone = again(at_l0(parents[0].folded(), k, flat), batches)
        torch.testing.assert_close(dictionary.reconstruct(flat), alone.reconstruct(flat), atol=1e-3, rtol=1e-3)


def test_a_parent_without_a_sparsity_to_change_is_compared_at_its_own_and_that_is_said():
    parents = [random_dictionary(20, 8, seed=1, name="a", activation=GroupMax(4)), random_dictionary(30, 8, name="b")]
    points, cautions = parents_at_levels(encode_chain(parents, [X]), [X], "bias", result=6.4, others=[])
    assert {point.parent for point in points} == {"b"} and "a: activation function groupmax" in cautions[0]


def test_a_parent_under_the_rule_of_the_result_takes_the_steps_that_the_result_took():
    """So that a result that is a whole parent under that rule is neither better nor worse than it."""
    parents = [random_dictionary(n, 8, seed=n, name=f"d{n}", activation=TopK(4)) for n in (20, 30)]
    chain, flat = encode_chain(parents, [X]), X.reshape(-1, 8)
    points, _ = parents_at_levels(chain, [X], "decoder", result=4.0, others=[], competition="jumprelu")
    found = {point.dictionary.name: point.dictionary for point in points}
    for level in (0.97 * 4.0, 4.0, 1.03 * 4.0):
        refitted = refit_decoder(parents[1].folded(), [X])
        step, expected = list(competition_steps(refitted, "jumprelu", level, [X], "decoder", flat).items())[-1]
        own = found[f"d30 under {step} at L0 {level:.2f}"]
        torch.testing.assert_close(own.reconstruct(flat), expected.reconstruct(flat), atol=2e-2, rtol=2e-2)


def test_a_difference_that_refits_alone_can_make_is_not_called_better():
    curves = [curve("a", 60.0, (8, 16, 32))]
    for factor, words in ((0.9999, "as good as"), (0.99, "better than"), (1.01, "WORSE than")):
        compared = at_equal_l0(measured("result", 16.0, factor * 60 / 16), curves)
        assert f"the stitched dictionary is {words} the best parent, a," in equal_l0_sentence(compared, refitted=True)
