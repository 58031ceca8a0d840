"""The search against every subset of small pools, against planted truth, and against itself."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from analyses.pool import refitted_updates, subset_updates
from analyses.pool import ridge_refit as refits
from analyses.pool.pool_sample import PoolSample
from analyses.pool.quadratic_error import QuadraticError
from analyses.pool.refitted_updates import RefittedDecoder, penalties_of
from analyses.pool.ridge_refit import normal_equations
from analyses.pool.search_starts import best_of_starts
from analyses.pool.subset_search import reduced, search
from analyses.pool.subset_updates import FixedDecoder
from dictlab import DictlabError
from tests.planted import sparse_data

RIDGE = 1e-2


def optimal(*given, **options):
    return search(*given, **options).chosen


def pool(seed: int, n: int = 10, d: int = 6, tokens: int = 200, lengths: bool = False) -> QuadraticError:
    """Latents with rates from rare to common that partly explain the same things; directions of unit length or of several."""
    generator = np.random.default_rng(seed)
    rates = generator.uniform(0.05, 0.6, n)
    codes = generator.gamma(2.0, size=(tokens, n)) * (generator.random((tokens, n)) < rates)
    true = generator.normal(size=(n, d))
    target = codes @ true * (generator.random(n) < 0.7)[:, None].mean() + generator.normal(size=(tokens, d)) + 1
    directions = true + 0.7 * generator.normal(size=(n, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    if lengths:
        directions *= generator.uniform(0.7, 1.4, (n, 1))
    return QuadraticError.from_sample(seen(codes, target), torch.from_numpy(directions).float())


def seen(codes: np.ndarray, target: np.ndarray) -> PoolSample:
    return PoolSample(sparse.csr_array(codes.astype(np.float32)), target.astype(np.float32), np.ones(len(target)))


def subsets(n: int, most: int):
    for size in range(most + 1):
        for chosen in combinations(range(n), size):
            mask = np.zeros(n, dtype=bool)
            mask[list(chosen)] = True
            yield mask


def penalised(made: QuadraticError, chosen: np.ndarray, ridge: float = RIDGE) -> float:
    """The error of the refitted set with its pull, written out by the normal equations of the set alone.

    A latent is penalised by ridge times the mean energy that a latent of the pool adds, where its direction is of
    length 1, and by that over the square of the length where it is not.
    """
    everything, squares = normal_equations(made.sample), made.directions.double().square().sum(dim=1)
    energies = everything.gram.diagonal()[:-1]
    kept = torch.from_numpy(np.flatnonzero(chosen))
    pull = ridge * float((energies * squares)[energies > 0].mean()) / squares[kept]
    own = everything.of(kept)
    before = torch.cat([made.directions.double()[kept], torch.zeros(1, made.d_in).double()])
    penalty = torch.cat([pull, torch.zeros(1)])
    solution = before + torch.linalg.solve(own.gram + penalty.diag(), own.moment - own.gram @ before)
    pulled = float((pull[:, None] * (solution - before)[:-1].square()).sum())
    return own.error(solution) + pulled / (made.sample.n_tokens * made.d_in)


# Against every subset


@pytest.mark.parametrize("refit", [None, RIDGE])
def test_the_local_optimum_is_the_best_of_all_subsets_or_near_it(refit):
    """At most 4 of 9: of the error that choosing can remove, nothing is lost in any of these pools; 0.1 % is allowed."""
    gaps = []
    for seed in range(6 if refit else 20):
        made = pool(seed, n=9)
        errors = {m.tobytes(): penalised(made, m) if refit else made.error(m) for m in subsets(9, 4)}
        nothing, best = errors[np.zeros(9, dtype=bool).tobytes()], min(errors.values())
        found = search(made, latents=4, refit=refit)
        assert errors[found.chosen.tobytes()] == pytest.approx(found.error, rel=1e-6)
        gaps.append((found.error - best) / (nothing - best))
    assert max(gaps) < 1e-3


@pytest.mark.parametrize("refit", [None, RIDGE])
def test_under_a_budget_of_l0_little_is_lost(refit):
    """A knapsack of few big things, the hardest kind: 8 % are lost at worst here and 0.8 % on average."""
    gaps = []
    for seed in range(8 if refit else 20):
        made = pool(seed, n=9)
        allowed = [m for m in subsets(9, 9) if made.l0(m) <= 0.8]
        errors = {m.tobytes(): penalised(made, m) if refit else made.error(m) for m in allowed}
        nothing, best = errors[np.zeros(9, dtype=bool).tobytes()], min(errors.values())
        found = search(made, l0=0.8, refit=refit)
        gaps.append((found.error - best) / (nothing - best))
    assert max(gaps) < 0.1 and np.mean(gaps) < 0.01


@pytest.mark.parametrize("refit", [None, RIDGE])
def test_where_the_search_settles_no_single_move_helps(refit):
    for seed in range(10):
        made = pool(seed, n=12)
        found = search(made, latents=5, l0=1.5, refit=refit)
        assert found.settled

        def error(mask, made=made):
            return penalised(made, mask) if refit else made.error(mask)

        here = error(found.chosen)
        inside, outside = np.flatnonzero(found.chosen), np.flatnonzero(~found.chosen)
        for gone in (None, *inside):
            for new in (None, *outside):
                other = found.chosen.copy()
                other[[i for i in (gone, new) if i is not None]] ^= True
                if other.sum() <= 5 and made.l0(other) <= 1.5:
                    assert error(other) >= here - 1e-7


# What is tracked


@pytest.mark.parametrize("refit", [None, RIDGE])
def test_every_move_lowers_the_error_and_what_is_tracked_is_what_recomputing_gives(refit):
    """Starting within the budgets; to 1e-6."""
    made = pool(3, n=40, d=12, tokens=500)
    start = np.random.default_rng(0).random(40) < 0.2
    found = search(made, start, latents=20, l0=5.0, refit=refit)
    chosen, last = start.copy(), penalised(made, start) if refit else made.error(start)
    assert len(found.moves) > 10
    for move in found.moves:
        for latent in (move.removed, move.added):
            if latent is not None:
                chosen[latent] ^= True
        now = penalised(made, chosen) if refit else made.error(chosen)
        assert move.error == pytest.approx(now, rel=1e-6) and now < last
        assert move.l0 == pytest.approx(made.l0(chosen))
        last = now
    assert (chosen == found.chosen).all()


@pytest.mark.parametrize("candidates", [1, 64])
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_changes_and_the_best_of_them_are_those_of_doing_it(candidates, seed, refit):
    """Also where few changes are worked out and the others are only bounded."""
    generator = np.random.default_rng(seed)
    made = pool(seed % 7, n=14, lengths=True)
    start = generator.random(14) < 0.4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subset_updates, "CANDIDATES", candidates)
        check_moves(made, start, refit, generator)


def check_moves(made, start, refit, generator):
    state = RefittedDecoder(made, start, penalties_of(made, RIDGE)) if refit else FixedDecoder(made, start)

    def error(mask):
        return penalised(made, mask) if refit else made.error(mask)

    for latent in generator.permutation(14)[:5]:  # walks away from the start, so that updates are tried too
        changes, here = state.changes(), error(state.chosen)
        for other in range(14):
            moved = state.chosen.copy()
            moved[other] ^= True
            assert changes[other] == pytest.approx(error(moved) - here, abs=1e-6)
        same, price, able = np.ones(14), made.sample.firing_rate + 0.1, ~state.chosen
        for prices in (same, price):  # by their true order, whatever is known of them at the time
            found, change = state.best(able, prices)
            if able.any():
                assert change / prices[found] == pytest.approx((changes / prices)[able].min(), abs=1e-6)
        if state.chosen[latent]:
            gone = state.chosen.copy()
            gone[latent] = False
            worse, after = error(gone), {}
            for other in np.flatnonzero(able):
                moved = gone.copy()
                moved[other] = True
                after[other] = error(moved) - worse
            found, change = state.best(able, same, int(latent))
            assert change == pytest.approx(min(after.values(), default=np.inf), abs=1e-6)
            if state.swap_cannot_help(latent, changes):
                assert changes[latent] + min(after.values(), default=0.0) >= -1e-7
        state.move(latent)


def test_working_everything_out_anew_after_some_moves_changes_nothing(monkeypatch):
    made = pool(1, n=40, d=12, tokens=500)
    expected = [search(made, latents=20, refit=refit) for refit in (None, RIDGE)]
    monkeypatch.setattr(refitted_updates, "REFRESH", 1)
    monkeypatch.setattr(subset_updates, "SUMS", 1)
    for refit, other in zip((None, RIDGE), expected, strict=True):
        found = search(made, latents=20, refit=refit)
        assert (found.chosen == other.chosen).all() and found.error == pytest.approx(other.error, rel=1e-6)


# Planted truth


def planted(copies: int = 2, n: int = 24) -> tuple[QuadraticError, np.ndarray]:
    """A pool of the true latents, copies of them, latents that fire on something else, and latents that never fire."""
    x, directions = sparse_data(2000, n, 24, 3)
    codes = np.clip(((x - 0.7) @ directions.T).numpy(), 0, None)
    codes[codes < 0.5] = 0
    generator = np.random.default_rng(0)
    noise = generator.random((2000, 30)) * (generator.random((2000, 30)) < 0.1)
    astray = torch.nn.functional.normalize(torch.randn(30, 24, generator=torch.Generator().manual_seed(1)), dim=1)
    all_codes = np.hstack([*[codes] * copies, noise, np.zeros((2000, 5))])
    rows = torch.cat([*[directions] * copies, astray, directions[:5]])
    return QuadraticError.from_sample(seen(all_codes, x.numpy()), rows), np.arange(copies * n + 35) % n


@pytest.mark.parametrize("refit", [None, RIDGE])
@pytest.mark.parametrize("budget", [{}, {"latents": 24}, {"latents": 60}, {"l0": 3.1}])
def test_the_true_latents_are_found_each_once_and_nothing_else(refit, budget):
    made, which = planted()
    found = search(made, **budget, refit=refit)
    true = found.chosen[:48]
    assert sorted(which[:48][true]) == list(range(24))
    assert not found.chosen[48:].any() or (refit and found.chosen[48:78].sum() < 31)  # a refit finds noise in noise
    assert not found.chosen[78:].any()


def test_a_smaller_budget_takes_the_latents_that_matter_most():
    """Orthogonal latents of a known energy: the largest, or for L0 the largest for each firing."""
    generator = np.random.default_rng(0)
    rates, sizes = np.linspace(0.05, 0.5, 8), generator.uniform(1, 3, 8)
    codes = sizes * (generator.random((20_000, 8)) < rates)
    made = QuadraticError.from_sample(seen(codes, codes @ np.eye(8)), torch.eye(8))
    variance = codes.var(axis=0)
    assert set(np.flatnonzero(optimal(made, latents=3))) == set(np.argsort(-variance)[:3])
    cheap = np.argsort(-variance / made.sample.firing_rate)
    allowed = float(made.sample.firing_rate[cheap[:3]].sum())
    assert set(cheap[:3]) == set(np.flatnonzero(optimal(made, l0=allowed)))


# Invariance, budgets, bad input


@pytest.mark.parametrize("refit", [None, RIDGE])
def test_the_order_of_latents_does_not_matter(refit):
    made = pool(5, n=30, d=8)
    order = np.random.default_rng(0).permutation(30)
    other = QuadraticError.from_sample(
        PoolSample(made.sample.codes[:, order].tocsr(), made.sample.target, made.sample.scale),
        made.directions[order],
    )
    for budget in ({"latents": 10}, {"l0": 2.0}):
        assert (optimal(other, **budget, refit=refit) == optimal(made, **budget, refit=refit)[order]).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 6), st.integers(0, 14), st.floats(0, 6), st.booleans(), st.booleans())
def test_budgets_are_kept_whatever_the_start(seed, latents, l0, refit, from_all):
    made = pool(seed, n=12)
    start = np.ones(12, dtype=bool) if from_all else None
    found = search(made, start, latents=latents, l0=l0, refit=RIDGE if refit else None)
    assert found.chosen.sum() <= latents and made.l0(found.chosen) <= l0 + 1e-9


@pytest.mark.parametrize("refit", [None, RIDGE])
def test_a_budget_of_nothing_chooses_nothing_and_one_beyond_the_pool_is_no_budget(refit):
    made = pool(2)
    assert not optimal(made, latents=0, refit=refit).any() and not optimal(made, l0=0.0, refit=refit).any()
    free = optimal(made, refit=refit)
    assert (optimal(made, latents=10_000, l0=10_000.0, refit=refit) == free).all()


@pytest.mark.parametrize("refit", [None, RIDGE])
def test_pools_of_the_dead_and_of_one_latent_are_searched(refit):
    target = np.random.default_rng(0).normal(size=(50, 4))
    dead = QuadraticError.from_sample(seen(np.zeros((50, 3)), target), torch.eye(4)[:3])
    assert not optimal(dead, refit=refit).any()
    one = QuadraticError.from_sample(seen(np.ones((50, 1)) * (np.arange(50) % 2)[:, None], target), torch.zeros(1, 4))
    assert optimal(one, refit=refit).shape == (1,)


def test_when_trials_run_out_the_search_says_so():
    made = pool(4, n=30, d=8)
    whole = search(made, latents=10)
    hasty = search(made, latents=10, trials=0)
    assert whole.settled and not hasty.settled and hasty.error >= whole.error


def test_a_pool_too_large_for_a_refit_is_searched_among_the_most_promising_and_said_so(monkeypatch):
    """The promise is that of a latent at its best scale; planted, it finds the true ones."""
    made, which = planted()
    with monkeypatch.context() as few:
        few.setattr(refits, "LARGEST_REFIT", 60)
        found = search(made, latents=24, refit=RIDGE)
        with pytest.raises(DictlabError, match="60 is the most"):
            search(made, np.ones(83, dtype=bool), refit=RIDGE)
    assert "60" in found.approximate and sorted(which[found.chosen]) == list(range(24))
    assert found.error == pytest.approx(penalised(made, found.chosen), rel=1e-6)


@pytest.mark.parametrize("wrong", [{"latents": -1}, {"l0": -0.5}, {"trials": -1}])
def test_negative_budgets_are_refused(wrong):
    with pytest.raises(DictlabError):
        search(pool(0), **wrong)


def test_a_start_of_another_pool_is_refused():
    with pytest.raises(DictlabError, match="10"):
        search(pool(0), np.zeros(3, dtype=bool))


def test_a_fixed_bias_is_respected():
    made = pool(0)
    fixed = QuadraticError.from_sample(made.sample, made.directions, torch.full((made.d_in,), 0.3))
    found = search(fixed, latents=4)
    assert found.error == pytest.approx(fixed.error(found.chosen), rel=1e-6)
    assert replace(found, settled=True).chosen.sum() <= 4


@pytest.mark.parametrize("refit", [False, True])
def test_a_search_from_the_best_of_several_starts_is_no_worse_than_what_each_of_them_leads_to(refit):
    for seed in range(5):
        made = pool(seed, n=16)
        starts = [np.arange(16) < 8, np.arange(16) >= 8]
        equations = normal_equations(made.sample) if refit else None
        found = best_of_starts(made, starts, latents=5, l0=2.0, equations=equations, ridge=RIDGE)
        assert found.chosen.sum() <= 5 and made.l0(found.chosen) <= 2.0
        for start in (np.zeros(16, dtype=bool), *starts):
            other = search(made, start, latents=5, l0=2.0, trials=0).chosen
            if refit:
                bare = [equations.of(torch.from_numpy(np.flatnonzero(m))) for m in (found.chosen, other)]
                free = [e.error(torch.linalg.solve(e.gram, e.moment)) for e in bare]
                assert free[0] <= free[1] + 0.01 * abs(free[1])  # up to the pull
            else:
                assert found.error <= made.error(other) + 1e-9


def test_silent_latents_of_a_start_take_no_places():
    made, _ = planted()
    found = search(made, np.ones(83, dtype=bool), latents=78, trials=0)
    assert not found.chosen[78:].any() and not any(
        move.removed is not None and move.removed >= 78 for move in found.moves
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("latents", "l0"), [(4, None), (None, 1.2), (6, 1.0), (10, 100.0)])
def test_what_is_cut_to_a_budget_loses_at_each_step_what_raises_the_error_least_for_what_it_takes(seed, latents, l0):
    """Errors decoded densely, with the best bias of each set."""
    made = pool(seed)
    codes, rates = made.sample.codes.toarray().astype(float), made.sample.firing_rate
    directions = made.directions.double().numpy()

    def error(chosen):
        left = made.sample.target - codes[:, chosen] @ directions[chosen]
        return np.square(left - left.mean(axis=0)).mean()

    expected = np.arange(10) != 3
    while (latents is not None and expected.sum() > latents) or (l0 is not None and rates[expected].sum() > l0):
        too_many = latents is not None and expected.sum() > latents
        costs = []
        for latent in np.flatnonzero(expected):
            without = expected & (np.arange(10) != latent)
            costs.append(((error(without) - error(expected)) / (1.0 if too_many else rates[latent]), latent))
        expected[min(costs)[1]] = False
    assert np.array_equal(reduced(made, np.arange(10) != 3, latents=latents, l0=l0), expected)
