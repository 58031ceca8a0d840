"""Curves and fronts on points whose ratios are known, by brute force, and on the papers' own tables."""

import json
from itertools import product
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.lines import Line2D

from analyses.quality.curve_comparison import estimate, front, interpolated, mean_ratio, nearest
from analyses.quality.measured_points import MEASURES, Curve, Point, curves
from analyses.quality.pareto import plots as pareto_plots
from analyses.quality.pareto import report as pareto_report
from analyses.quality.pareto import tables
from analyses.quality.pareto.comparisons import (
    SIMILAR,
    compared_quantities,
    curve_ratios,
    on_front,
    similar_pairs,
    training_costs,
)
from analyses.quality.pareto.pareto import pareto
from analyses.quality.pareto.tables import fronts_table as fronts
from analyses.quality.pareto.tables import points_table
from dictlab import Metadata, ReLU, TopK
from dictlab.evaluation.metrics import Evaluation
from dictlab.numerics.statistics import RESAMPLES
from tests.planted import SITE, random_dictionary, tiny_model


def matched(curves):
    return tables.matched_table(curve_ratios(curves))


def pairs(curves, key):
    return tables.pairs_table(similar_pairs(curves, key), list(compared_quantities(curves[0].measures[0])))


def cost_table(curves):
    return tables.cost_table(training_costs(curves))


L0_AT_CE, ALIVE_AT_CE, CE_AT_L0, CE_AT_ALIVE = (
    "L0 at matched CE increase",
    "alive latents at matched CE increase",
    "CE increase at matched L0",
    "CE increase at matched alive latents",
)
positive = st.floats(0.01, 100)


def point(
    name: str,
    l0: float,
    ce,
    *,
    objective: str | None = "local",
    alive: int = 20,
    n: int = 24,
    activation=None,
    sequences: int = 40,
    **metadata,
) -> Point:
    """A measured dictionary of known L0 and CE increase: one number, or one for each sequence."""
    ce = np.broadcast_to(ce, sequences).astype(float)
    ones = np.ones(sequences)
    sums = {"tokens": ones, "predicted": ones, "coordinates": ones, "l0": l0 * ones, "squared_error": ce, "kl": ce}
    sums |= {"variance": 9 * ones, "ce_clean": ones, "ce": 1 + ce, "ce_zero": 12 * ones, "ce_mean": 11 * ones}
    fired = torch.zeros(sequences, n)
    fired[:, :alive] = 1
    about = Metadata(site=SITE, objective=objective, **metadata)
    dictionary = random_dictionary(n, name=name, metadata=about, activation=activation or ReLU())
    return Point(dictionary, Evaluation(name, sums, fired, seed=0))


def law(objective: str, l0s, factor: float, noise=0.0, **options) -> list[Point]:
    """Dictionaries whose CE increase is factor / L0, times 1 + noise of each sequence."""
    return [point(f"{objective} {l0}", l0, factor / l0 * (1 + noise), objective=objective, **options) for l0 in l0s]


def ratio(frame, what: str, of: str = "e2e relu 24", over: str = "local relu 24"):
    return frame.set_index(["what", "of", "over"]).loc[(what, of, over)]


# Two curves


def test_the_ratio_of_two_power_laws_is_found_where_they_overlap():
    x, other_x = np.array([10.0, 20, 80]), np.array([15.0, 40, 200])
    found, low, high = mean_ratio(x, 3 / x, other_x, 1.5 / other_x)
    assert found == pytest.approx(0.5) and (low, high) == (15, 80)


def test_the_order_of_the_points_does_not_matter():
    x = np.array([80.0, 10, 20])
    assert mean_ratio(x, 3 / x, x, 6 / x)[0] == pytest.approx(2)


def test_curves_that_do_not_overlap_have_no_ratio():
    assert np.isnan(mean_ratio(np.array([1.0, 2]), np.ones(2), np.array([3.0, 4]), np.ones(2))[0])


def test_curves_that_share_a_point_only_have_no_ratio():
    """TopK dictionaries of several widths all lie at about the same L0."""
    x, other_x = np.array([15.99, 16.0]), np.array([10.0, 40])
    assert np.isnan(mean_ratio(x, np.array([0.1, 0.2]), other_x, 1 / other_x)[0])


@settings(max_examples=60, deadline=None)
@given(
    arrays(float, (3, 4), elements=positive),
    arrays(float, (3, 4), elements=positive),
    arrays(float, (3, 5), elements=st.floats(-6, 6)),
)
def test_interpolation_is_that_of_numpy_in_every_resample(x, y, at):
    x = np.log(x + 200 * np.arange(4))  # apart, so that both mean the same by a point in between
    for row in range(3):
        assert interpolated(x, y, at)[row] == pytest.approx(np.interp(at[row], x[row], y[row]))


@settings(max_examples=60, deadline=None)
@given(*(arrays(float, (4, n), elements=st.floats(-1, 100)) for n in (3, 3, 4, 4)))
def test_resamples_are_compared_as_if_each_were_alone(x, y, other_x, other_y):
    together = np.stack(mean_ratio(x, y, other_x, other_y))
    alone = np.array([mean_ratio(*row) for row in zip(x, y, other_x, other_y, strict=True)]).T
    assert np.array_equal(together, alone, equal_nan=True)
    bad = [any((v[i] <= 0).any() for v in (x, y, other_x, other_y)) for i in range(4)]
    assert np.isnan(together[0][bad]).all()


def test_points_at_one_place_make_no_infinite_slope():
    x = np.array([10.0, 10, 40])
    assert np.isfinite(mean_ratio(x, np.array([1.0, 2, 0.5]), x, np.array([3.0, 1, 0.5]))[0])


# Fronts


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=9))
def test_the_front_is_what_brute_force_finds(points):
    def beats(a, b):
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    cost, loss = (np.array(values, dtype=float) for values in zip(*points, strict=True))
    expected = [not any(beats(a, b) for a in points) for b in points]
    assert front(cost, loss).tolist() == expected
    assert front(np.stack([cost, cost]), np.stack([loss, loss])).tolist() == [expected, expected]


def test_fronts_turn_what_is_better_when_more_and_tell_in_how_many_resamples_they_hold():
    uneven = np.tile([0.0, 0.44], 20)  # mean 0.22: the third is worse than the second in most resamples, not in all
    measured = [point("a", 5, 1.0), point("b", 10, 0.2), point("c", 20, uneven), point("d", 30, 0.5)]
    frame = fronts(measured, "l0").set_index("dictionary")
    assert list(frame.index) == ["a", "b"] and (frame["L0"] == [5, 10]).all()
    assert (frame.drop(columns="L0") == 1).all(axis=None)  # of two that are sure, for all six measures
    better = [*measured[:2], point("c", 20, uneven - 0.04)]  # 0.18 on average: sometimes beaten by b
    share = fronts(better, "l0").set_index("dictionary").loc["c", "CE increase"]
    assert 0.5 < share < 1
    assert points_table(better).set_index("dictionary")["front"].to_dict() == {"a": "L0", "b": "L0", "c": "both"}


# Intervals


def test_an_interval_covers_the_planted_ratio_as_often_as_it_says():
    generator, hits, trials = np.random.default_rng(0), 0, 80
    for _ in range(trials):
        noise = [generator.normal(0, 0.5, size=40) for _ in range(2)]
        found = ratio(
            matched(curves([*law("local", (10, 20, 80), 3, noise[0]), *law("e2e", (15, 40, 60), 1.5, noise[1])])),
            CE_AT_L0,
        )
        hits += found["low"] <= 0.5 <= found["high"]
    assert 0.86 <= hits / trials <= 1, hits


def test_intervals_are_paired_so_that_what_both_curves_share_cancels():
    noise = np.random.default_rng(0).normal(0, 0.5, size=40)
    frame = matched(curves([*law("local", (10, 20, 80), 3, noise), *law("e2e", (15, 40, 60), 1.5, noise)]))
    for what in (CE_AT_L0, L0_AT_CE):
        assert ratio(frame, what)[["ratio", "low", "high"]].to_numpy(float) == pytest.approx(0.5)
        assert ratio(frame, what)["resamples"] == RESAMPLES


def test_resamples_without_an_overlap_are_counted():
    noise = np.random.default_rng(0).normal(0, 0.3, size=40)
    high = 0.112 * (1 + noise - noise.mean())  # of the sample 1.12 times where the other curve begins
    other = [point("e1", 15, high, objective="e2e"), point("e2", 30, 0.05, objective="e2e")]
    found = ratio(matched(curves([*law("local", (10, 20), 2.0), *other])), L0_AT_CE)
    overlapping = (other[0].series("ce_increase")[1:] >= 1.1 * 0.1).sum()
    assert np.isfinite(found["ratio"]) and 0 < found["resamples"] == overlapping < RESAMPLES


def test_with_fewer_than_half_of_the_resamples_there_is_no_interval():
    half, fewer = np.full(101, 2.0), np.full(101, 2.0)
    half[51:], fewer[50:] = np.nan, np.nan
    assert estimate(half) == (2, 2, 2, 50)
    assert estimate(fewer)[0] == 2 and np.isnan(estimate(fewer)[1:3]).all() and estimate(fewer)[3] == 49


def test_the_interval_of_a_count_is_moved_to_where_the_count_is():
    series = np.concatenate([[10.0], np.linspace(6, 8, 1000)])
    assert estimate(series).high < 10
    found = estimate(series, centred=True)
    assert found.low < 10 < found.high and found.high / found.low == pytest.approx(7.95 / 6.05, rel=1e-2)


def test_of_one_sequence_there_is_no_interval():
    frame = matched(curves([*law("local", (10, 20), 3, sequences=1), *law("e2e", (10, 20), 1, sequences=1)]))
    assert ratio(frame, CE_AT_L0)["ratio"] == pytest.approx(1 / 3)
    assert frame[["low", "high"]].isna().all(axis=None) and (frame["resamples"] == 0).all()


# Comparisons


def test_all_four_comparisons_are_made_over_local_and_single_places_are_left_out():
    made = [
        *(point(f"e{n}", n, 4 / n, objective="e2e", alive=a) for n, a in ((10, 20), (20, 10), (40, 5))),
        *(point(f"l{n}", 2 * n, 4 / n, alive=a) for n, a in ((10, 20), (20, 10), (40, 5))),
        point("k", 16, 0.2, activation=TopK(16)),
    ]
    frame = matched(curves(made))
    assert len(frame) == 4
    assert ratio(frame, L0_AT_CE)["ratio"] == pytest.approx(0.5)
    assert ratio(frame, CE_AT_L0)["ratio"] == pytest.approx(0.5)
    assert ratio(frame, ALIVE_AT_CE)["ratio"] == pytest.approx(1)
    assert ratio(frame, CE_AT_ALIVE)["ratio"] == pytest.approx(1)


def test_a_dictionary_without_a_loss_of_ce_leaves_its_curve_and_not_the_others():
    made = [*law("local", (10, 20, 40), 4), point("perfect", 80, 0.0), *law("e2e", (10, 20, 40), 2)]
    assert ratio(matched(curves(made)), CE_AT_L0)[["ratio", "to"]].to_numpy(float) == pytest.approx([0.5, 40])
    pareto_plots.headline(curves(made)).draw_without_rendering()


# Seeds


def seeded(name: str, l0: float, seed: int | None, l1: float, **options) -> Point:
    return point(name, l0, 4 / l0, seed=seed, tokens=100, training={"l1": l1, "seconds": 1.0 + (seed or 0)}, **options)


def test_seeds_of_a_setting_are_one_place_of_the_curve_at_their_geometric_mean():
    (curve,) = curves([seeded("a", 8, 0, 1), seeded("b", 32, 1, 1), seeded("c", 64, 0, 2)])
    assert [[p.name for p in seeds] for seeds in curve.settings] == [["a", "b"], ["c"]]
    assert curve.series["l0"][0] == pytest.approx([16, 64])
    assert curve.series["ce_increase"][0] == pytest.approx([4 / 16, 4 / 64])  # still on the power law


def test_seeds_of_a_fine_tuned_setting_are_one_place_whatever_each_took():
    def tuned(name, seed):
        cost = {"seconds": 9.0 + seed, "finetune_seconds": 2.0 + seed, "relative_cost": 1.2 + seed}
        how = {"k": 16, "finetune": {"objective": "e2e", "tokens": 10}, **cost}
        return point(name, 16, 0.1, seed=seed, tokens=100, training=how, activation=TopK(16))

    (curve,) = curves([tuned("a", 0), tuned("b", 1)])
    assert [[p.name for p in seeds] for seeds in curve.settings] == [["a", "b"]]


def test_seeds_alone_are_no_curve():
    """TopK dictionaries of one k and width, which differ in their seed, can be nowhere interpolated."""
    made = [*(seeded(f"k{s}", 16 + s, s, 0, activation=TopK(16)) for s in range(3)), *law("e2e", (10, 40), 4)]
    assert matched(curves(made)).empty


@pytest.mark.parametrize("changed", [{"l1": 3.0}, {"seed": None}, {"n": 12}, {"activation": TopK(4)}])
def test_what_differs_in_more_than_the_seed_or_tells_none_is_another_setting(changed):
    one, other = {"seed": 0, "l1": 1.0}, {"seed": 1, "l1": 1.0} | changed
    made = curves([seeded("a", 10, **one), seeded("b", 12, **other)])
    assert sum(len(curve.settings) for curve in made) == 2


# Pairs

# Braun et al. 2024, tables 2 and 3: layer, objective, (L0, CE increase) of the runs at similar CE, then at similar L0.
PAPER = {
    2: {"local": ((73.5, 0.016), (18.4, 0.101)), "e2e": ((33.4, 0.020), (18.6, 0.043)), "e2e+ds": ((36.2, 0.015), (17.9, 0.039))},
    6: {"local": ((69.4, 0.144), (42.8, 0.228)), "e2e": ((27.5, 0.145), (39.7, 0.099)), "e2e+ds": ((36.8, 0.124),)},
    10: {"local": ((162.7, 0.122), (74.9, 0.202)), "e2e": ((62.3, 0.131),), "e2e+ds": ((70.2, 0.144),)},
}  # fmt: skip


@pytest.mark.parametrize(("layer", "objective", "table"), list(product(PAPER, ("e2e", "e2e+ds"), (0, 1))))
def test_the_papers_pairs_are_picked_from_its_runs(layer, objective, table):
    runs = {o: PAPER[layer][o] for o in ("local", objective)}
    made = [point(f"{o}{i}", l0, ce, objective=o) for o, found in runs.items() for i, (l0, ce) in enumerate(found)]
    (row,) = pairs(curves(made), ("ce_increase", "l0")[table]).to_dict("records")
    expected = [runs[o][min(table, len(runs[o]) - 1)] for o in (objective, "local")]
    assert (row["of"][-1], row["over"][-1]) == tuple(
        str(runs[o].index(r)) for o, r in zip((objective, "local"), expected, strict=True)
    )
    assert (row["L0"], row["CE"]) == pytest.approx(tuple(a / b for a, b in zip(*expected, strict=True)))
    assert max(row["CE" if table == 0 else "L0"], 1 / row["CE" if table == 0 else "L0"]) <= SIMILAR


def test_pairs_are_of_one_width_and_near_and_their_ratios_are_of_alive_latents_too():
    made = [
        point("l", 30, 0.30, alive=20),
        point("far", 90, 0.90, objective="e2e"),
        point("near", 12, 0.31, objective="e2e", alive=10),
        point("wider", 12, 0.30, objective="e2e", n=48),
    ]
    (row,) = pairs(curves(made), "ce_increase").to_dict("records")
    assert (row["of"], row["over"]) == ("near", "l")
    for name, expected in (("L0", 0.4), ("CE", 31 / 30), ("alive", 0.5)):
        assert [row[f"{name}{part}"] for part in ("", " low", " high")] == pytest.approx([expected] * 3)
    assert pairs(curves(made), "l0").empty  # 30 and 12 are not similar


def test_the_nearest_are_found_among_all_and_what_has_no_logarithm_is_near_to_none():
    assert nearest(np.array([1.0, 8]), np.array([3.0, 20, 7])) == (1, 2, pytest.approx(8 / 7))
    assert nearest(np.array([-1.0, 0]), np.array([-1.0]))[2] == np.inf


# Cost


def test_cost_is_relative_to_local_training_of_that_width_and_activation_function():
    def told(name, objective, seconds, **options):
        return point(name, 10, 0.1, objective=objective, tokens=1000, training={"seconds": seconds}, **options)

    made = [
        told("a", "local", 5.0, activation=TopK(4)),
        told("b", "local", 10.0),
        told("c", "e2e", 30.0),
        told("d", "e2e", 50.0),
        told("e", "e2e", 50.0, activation=TopK(4)),
        told("f", "e2e", 50.0, n=12),
    ]
    frame = cost_table(curves(made)).set_index("curve")
    assert frame.loc["e2e relu 24", ["seconds", "least", "most", "× seconds"]].tolist() == [40, 30, 50, 4]
    assert frame.loc["e2e relu 24", "relative to"] == "local relu 24" and frame.loc["e2e relu 24", "× tokens"] == 1
    assert frame.loc["e2e topk 24", "× seconds"] == 10
    assert frame["relative to"].isna().tolist() == [c.startswith("local") or c.endswith("12") for c in frame.index]


def test_what_a_file_does_not_record_is_called_so():
    made = [
        point("a", 10, 0.1),
        point("b", 10, 0.1, objective="e2e", tokens=1000),
        point("c", 20, 0.2, objective="e2e", tokens=3000, training={"seconds": 2.0}),
        point("d", 20, 0.2, objective=None, tokens=3000, training={"seconds": 2.0}),
    ]
    frame = cost_table(curves(made)).set_index("curve")
    assert frame["recorded"].to_dict() == {
        "local relu 24": "not recorded",
        "e2e relu 24": "tokens, seconds of 1",
        "unknown relu 24": "yes",
    }
    assert frame.loc["e2e relu 24", "tokens"] == 2000 and np.isnan(frame.loc["e2e relu 24", "× seconds"])
    assert frame.loc["local relu 24", ["tokens", "seconds"]].isna().all()


# The report


def rings(ax) -> list[tuple[float, float]]:
    """Where a panel marks the front."""
    found = [line for line in ax.get_lines() if line.get_markerfacecolor() == "none" and line.get_marker() == "o"]
    return sorted(zip(*(found[0].get_xdata(), found[0].get_ydata()), strict=True))


def test_the_front_is_ringed_in_every_panel():
    made = [*law("local", (10, 20, 40), 4), point("worse", 50, 0.5, objective="e2e"), point("also", 12, 0.5, alive=5)]
    lines = curves(made)
    drawn = [
        (pareto_plots.headline(lines).axes[0], MEASURES[0], "l0"),
        (pareto_plots.headline(lines).axes[1], MEASURES[0], "alive"),
    ]
    for cost in ("l0", "alive"):
        drawn += [(ax, m, cost) for ax, m in zip(pareto_plots.others(lines, cost).axes, MEASURES[1:], strict=False)]
    assert len(drawn) == 12
    for ax, measure, cost in drawn:
        expected = [p for p, on in zip(made, on_front(made, measure, cost), strict=True) if on]
        assert rings(ax) == sorted((p.value(cost), p.value(measure.key)) for p in expected)


def test_curves_are_told_apart_without_colour():
    looks = [pareto_plots._look(number) for number in range(40)]
    assert len({(look["marker"], str(look["ls"])) for look in looks}) == 40
    assert all(isinstance(Line2D([], [], **look), Line2D) for look in looks)


def test_a_report_has_a_number_in_every_place(text, tmp_path):
    about = Metadata(site=SITE, objective="e2e", seed=0, tokens=10, training={"l1": 1.0, "seconds": 2.0})
    made = [
        random_dictionary(24, 16, seed=1, name="plain"),
        random_dictionary(24, 16, seed=2, name="e2e", metadata=about, activation=ReLU()),
        random_dictionary(32, 16, seed=3, name="k8", activation=TopK(8)),
    ]
    report = pareto(made, model=tiny_model(), text=text, contexts=6)
    for name in ("points", "measures", "metrics"):
        assert report.tables[name].frame.notna().all(axis=None), name
    assert set(report.tables["points"].frame["front"]) <= {"no", "L0", "alive", "both"}
    assert "nan" not in report.summary.lower() and "none are compared" in report.summary
    assert "6 held-out sequences" in report.plots["pareto"].caption
    page = (report.save(tmp_path / "out") / "report.html").read_text()
    assert "not recorded" in page and "e2e relu 24" in page


def test_where_nothing_has_a_logarithm_the_panel_says_so():
    figure = pareto_plots.headline(curves([point("a", 10, 0.0), point("b", 20, -0.1)]))
    figure.draw_without_rendering()
    assert "nothing above 0" in figure.axes[0].texts[0].get_text()


def test_one_dictionary_is_reported_without_comparisons(text, tmp_path):
    report = pareto(random_dictionary(24, 16, name="only"), model=tiny_model(), text=text, contexts=4)
    assert report.title == "What 1 dictionary gives for sparsity"
    assert report.summary.startswith("Smallest CE increase") and "only" in report.summary
    assert all(report.tables[name].frame.empty for name in ("matched", "similar_ce", "similar_l0"))
    folder = report.save(tmp_path / "out")
    assert {"points.csv", "pareto.png", "against_alive.svg"} <= set(
        json.loads((folder / "report.json").read_text())["files"]
    )


def test_one_sequence_is_warned_of(text):
    report = pareto([random_dictionary(24, 16)], model=tiny_model(), text=text, contexts=1)
    assert any("no intervals" in warning for warning in report.warnings)


def test_curves_of_several_settings_come_first_and_local_before_others():
    made = [point("k", 9, 1, activation=TopK(9)), *law("e2e", (10, 20), 3), *law("local", (10, 20), 3)]
    assert [curve.name for curve in curves(made)] == ["local relu 24", "e2e relu 24", "local topk 24"]
    assert all(isinstance(curve, Curve) for curve in curves(made))


def test_the_summary_states_both_ratios_of_each_pair_of_curves():
    def curve(name: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, local=name == "local", measures=[SimpleNamespace(label="MSE")])

    class Ratio(NamedTuple):
        value: float
        low: float
        high: float

    local, others = curve("local"), [curve("a"), curve("b")]
    ratios = [
        SimpleNamespace(what=what, of=of, over=local, ratio=Ratio(value, value - 0.1, value + 0.1))
        for of in others
        for what, value in (("MSE at matched L0", 1.25), ("L0 at matched MSE", 0.75))
    ]
    costs = [SimpleNamespace(curve=one, relative_to=None, times_seconds=1.0) for one in others]
    sentences = pareto_report._compared(ratios, costs, [local, *others])
    assert [one.split(" has ")[0] for one in sentences] == ["Against local, a", "Against local, b"]
    for sentence in sentences:
        assert "1.25" in sentence and "times the MSE at matched L0 and 0.75" in sentence
