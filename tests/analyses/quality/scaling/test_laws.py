"""Laws of scaling: planted ones are recovered from losses with noise, and told apart."""

import numpy as np
import pytest

from analyses.quality.scaling import laws as scaling_laws
from analyses.quality.scaling.laws import LAWS
from dictlab.numerics.statistics import intervals

BY_NAME = {law.name: law for law in LAWS}
WIDTHS = np.repeat(2.0 ** np.arange(8, 17), 2)


def noisy(values, seed, spread=0.005):
    return values * np.exp(spread * np.random.default_rng(seed).standard_normal(len(values)))


@pytest.mark.parametrize("rest", [0.0, 0.1])
def test_a_planted_power_law_is_recovered_and_its_irreducible_term_told(rest):
    loss = noisy(3.0 * WIDTHS**-0.5 + rest, 0)
    plain, full = (scaling_laws.fit(BY_NAME[name], {"width": WIDTHS}, loss) for name in ("L(N)", "L(N) + irreducible"))
    found = full if rest else plain
    assert found.values[1] == pytest.approx(0.5, abs=0.03)
    assert np.exp(found.values[0]) == pytest.approx(3.0, rel=0.15)
    if rest:
        assert np.exp(full.values[2]) == pytest.approx(rest, rel=0.05)
        assert full.aic < plain.aic - 10
    else:
        assert plain.aic < full.aic + 4


def test_the_planted_joint_law_of_width_and_k_is_recovered():
    k, width = (a.ravel() for a in np.meshgrid(2.0 ** np.arange(3, 9), 2.0 ** np.arange(9, 21, 2)))
    truth = np.array([-0.50, 0.26, -0.017, -0.042, -1.32, -0.085])
    law = BY_NAME["L(N, K) + irreducible"]
    x = {"width": width, "k": k}
    clean = np.exp(law.of(truth, scaling_laws.logarithms(law, x)))
    found = scaling_laws.fit(law, x, noisy(clean, 1, 0.001))
    np.testing.assert_allclose(found.predict(x), clean, rtol=0.003)
    assert found.values[3] == pytest.approx(-0.042, abs=0.015)
    plain = scaling_laws.fit(BY_NAME["L(N, K)"], x, noisy(clean, 1, 0.001))
    assert found.aic < plain.aic


def test_a_planted_law_of_compute_is_recovered():
    flops = np.geomspace(1e12, 1e20, 25)
    found = scaling_laws.fit(BY_NAME["L(C) + irreducible"], {"flops": flops}, noisy(0.09 + 30 * flops**-0.16, 2, 0.002))
    assert found.values[1] == pytest.approx(0.16, abs=0.01)
    assert np.exp(found.values[2]) == pytest.approx(0.09, rel=0.03)


def test_intervals_over_runs_hold_the_truth_about_as_often_as_they_say():
    law, hits = BY_NAME["L(N)"], 0
    for seed in range(20):
        loss = noisy(3.0 * WIDTHS**-0.5, 100 + seed, 0.03)
        found = scaling_laws.fit(law, {"width": WIDTHS}, loss)
        low, high = intervals(scaling_laws.bootstrap(found, {"width": WIDTHS}, loss, seed))
        hits += low[1] <= 0.5 <= high[1]
    assert hits >= 15


def test_runs_that_are_just_enough_for_a_law_give_no_interval():
    """Every resample that can be fitted is all of them: an interval would have no length, whatever the noise."""
    law, width = BY_NAME["L(N) + irreducible"], 2.0 ** np.arange(8, 12)
    for some, known in ((width, False), (2.0 ** np.arange(8, 16), True)):
        loss = noisy(3.0 * some**-0.5 + 0.1, 5, 0.03)
        found = scaling_laws.fit(law, {"width": some}, loss)
        low, high = intervals(scaling_laws.bootstrap(found, {"width": some}, loss, 0))
        assert np.isfinite(low).all() == known and (not known or (high > low).all())


def test_the_largest_runs_are_predicted_by_the_smaller_ones():
    loss = 3.0 * WIDTHS**-0.5
    found = scaling_laws.held_out_predictions(BY_NAME["L(N)"], {"width": WIDTHS}, loss)
    assert [run for run, _ in found] == [len(WIDTHS) - 2, len(WIDTHS) - 1]
    assert [value for _, value in found] == pytest.approx(loss[-2:].tolist(), rel=1e-9)


def test_runs_that_cannot_tell_a_law_are_known():
    two = {"width": np.array([256.0, 256.0, 512.0, 512.0])}
    assert not scaling_laws.enough(BY_NAME["L(N)"], two)
    three = {"width": np.array([256.0, 512.0, 1024.0])}
    assert scaling_laws.enough(BY_NAME["L(N)"], three) and not scaling_laws.enough(BY_NAME["L(N) + irreducible"], three)
    one_k = {"width": 2.0 ** np.arange(8, 18), "k": np.full(10, 16.0)}
    assert not scaling_laws.enough(BY_NAME["L(N, K)"], one_k)


def test_the_front_holds_the_runs_that_no_other_beats():
    assert scaling_laws.pareto_front([1, 2, 3, 3], [5, 6, 4, 4.5]).tolist() == [True, False, True, False]
