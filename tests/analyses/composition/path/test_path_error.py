"""The path between sizes against building and running the dictionary at every point."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analyses.composition.path.latent_graph import components, graph
from analyses.composition.path.path_error import PathTrace, trace_schedule
from analyses.composition.path.path_steps import (
    PHASES,
    LatentMatching,
    cosine_scores,
    effect_scores,
    greedy_scores,
    random_scores,
    schedule_steps,
)
from analyses.pool.dictionary_pool import part_of, pool_of, with_common_normalisation
from analyses.pool.pool_sample import PoolSample, encode_sample
from analyses.pool.quadratic_error import QuadraticError
from analyses.pool.ridge_refit import refit_bias
from dictlab import Dictionary, ReLU, TopK
from dictlab.dictionary.normalisation import LayerNorm, Normalisation, Scale
from tests.dictionary.test_activation_functions import jumprelu
from tests.planted import random_dictionary

SEQUENCES, CONTEXT = 8, 25
X = 2 * torch.randn(SEQUENCES * CONTEXT, 8, generator=torch.Generator().manual_seed(0)) + 1
THRESHOLD = 0.75


def family(normalisation: Normalisation | None = None) -> list[Dictionary]:
    """Three dictionaries of one kind of activation each; the second shares directions with the first."""
    kinds = ((9, TopK(3)), (14, ReLU()), (20, jumprelu(20, 1)))
    made = [random_dictionary(n, 8, seed=n, activation=kind, normalisation=normalisation) for n, kind in kinds]
    made[1] = replace(made[1], W_dec=torch.cat([made[0].W_dec[:5], made[1].W_dec[5:]]))
    return made


def match_latents(
    chain: list[Dictionary], threshold: float = THRESHOLD, dead: tuple[int, ...] = ()
) -> list[LatentMatching]:
    alive = [~torch.isin(torch.arange(d.n_latents), torch.tensor(dead)) for d in chain]
    first = np.cumsum([0, *(d.n_latents for d in chain)])
    made = []
    for i in range(len(chain) - 1):
        own = graph(chain[i].W_dec, chain[i + 1].W_dec, threshold, alive[i], alive[i + 1])
        made.append(LatentMatching(own, components(own), int(first[i]), int(first[i + 1])))
    return made


def walked(chain: list[Dictionary], order: str = "cosine", **options) -> tuple[Dictionary, PoolSample, PathTrace]:
    whole = pool_of(chain)
    seen, matching = encode_sample(whole, X.split(60)), match_latents(chain, **options)
    made = QuadraticError.from_sample(seen, whole.W_dec)
    scores = {
        "cosine": [cosine_scores(k) for k in matching],
        "effect": [effect_scores(k, made) for k in matching],
        "greedy": [greedy_scores(k, made) for k in matching],
        "random": [random_scores(k, 3) for k in matching],
    }[order]
    way = schedule_steps(matching, whole.n_latents, scores, mixed=order == "greedy")
    biases = np.stack([d.b_out.double().numpy() for d in with_common_normalisation(chain)])
    marks = np.arange(0, way.steps + 1, 3)
    return whole, seen, trace_schedule(seen, whole.W_dec, way, biases, context=CONTEXT, marks=marks)


def squared(part: Dictionary) -> np.ndarray:
    return (X - part.reconstruct(X)).double().square().mean(dim=1).numpy()


@pytest.mark.parametrize("normalisation", [None, Scale(0.3), LayerNorm()])
@pytest.mark.parametrize("bias", ["best", "keep", "blend"])
def test_error_and_l0_at_every_point_equal_those_of_the_dictionary_there(normalisation, bias):
    """To 1e-5 of the error: codes and targets are float32, sums float64."""
    whole, _, found = walked(family(normalisation))
    mse, l0, by_sequence = found.mse(bias), found.l0(), found.sequences(bias)
    for point in range(found.schedule.steps + 1):
        chosen = torch.from_numpy(found.schedule.chosen(point))
        part = part_of(whole, chosen, b_out=torch.from_numpy(found.bias(point, bias)).float())
        if bias == "best":
            part = refit_bias(part_of(whole, chosen), X.split(60))
        error = squared(part)
        assert mse[point] == pytest.approx(error.mean(), rel=1e-5)
        assert l0[point] == pytest.approx(float(part.encode(X).l0().float().mean()), rel=1e-6)
        if point in found.marks:
            own = by_sequence[:, list(found.marks).index(point)]
            np.testing.assert_allclose(own, error.reshape(SEQUENCES, CONTEXT).mean(1), rtol=1e-4)


@pytest.mark.parametrize("order", ["cosine", "effect", "random", "greedy"])
@pytest.mark.parametrize("bias", ["keep", "blend"])
def test_the_path_begins_at_the_smallest_and_reaches_each_larger_dictionary_exactly(order, bias):
    chain = family()
    whole, _, found = walked(chain, order)
    assert squared(chain[0]).mean() == pytest.approx(found.mse(bias)[0], rel=1e-5)
    ends = [int((found.schedule.stage <= stage).sum()) for stage in range(2)]
    for end, dictionary in zip(ends, chain[1:], strict=True):
        part = part_of(
            whole,
            torch.from_numpy(found.schedule.chosen(end)),
            b_out=torch.from_numpy(found.bias(end, bias)).float(),
        )
        torch.testing.assert_close(part.reconstruct(X), dictionary.reconstruct(X), atol=1e-4, rtol=1e-4)
        assert found.mse(bias)[end] == pytest.approx(squared(dictionary).mean(), rel=1e-5)
        assert found.schedule.n_latents()[end] == dictionary.n_latents


@given(st.integers(0, 10**6), st.sampled_from([-1.1, 0.3, 0.6, 0.8, 1.1]))
def test_every_latent_comes_and_goes_once_and_phases_follow_each_other(seed, threshold):
    chain = [random_dictionary(n, 6, seed=seed + n) for n in (7, 12, 5)]
    matching = match_latents(chain, threshold, dead=(2, 4))
    way = schedule_steps(matching, 24, [random_scores(k, seed) for k in matching])
    assert way.chosen(0).tolist() == [True] * 7 + [False] * 17
    assert way.chosen(way.steps).tolist() == [False] * 19 + [True] * 5
    assert (way.enters < way.leaves).all()
    assert way.n_latents()[[0, -1]].tolist() == [5, 3]  # two of each are dead
    for point in range(1, way.steps + 1):
        assert (way.chosen(point) != way.chosen(point - 1)).any()
        assert way.n_latents()[point] == (way.chosen(point) & way.alive).sum()
    numbers = [PHASES.index(str(phase)) for phase in way.phase]
    for stage in range(2):
        own = [n for n, s in zip(numbers, way.stage, strict=True) if s == stage]
        assert own == sorted(own)
    assert way.phase_ends()[0] == 0 and way.phase_ends()[-1] == way.steps


def test_orders_are_those_that_they_are_called_by():
    chain = family()
    whole, seen, _ = walked(chain)
    made, (matching, *_) = QuadraticError.from_sample(seen, whole.W_dec), match_latents(chain)
    cosine = (chain[0].directions @ chain[1].directions.T).numpy()
    by_cosine, by_effect = cosine_scores(matching), effect_scores(matching, made)
    base = made.error(np.arange(whole.n_latents) < 9)
    for unit, kind in enumerate(matching.components.kind):
        small, large = (
            np.flatnonzero(of == unit) for of in (matching.components.of_small, matching.components.of_large)
        )
        edges = cosine[np.ix_(small, large)]
        expected = {"novel": cosine[:, large].max(initial=-1), "orphan": cosine[small].max(initial=-1)}
        least = edges[edges >= THRESHOLD].min(initial=np.inf)
        assert by_cosine[unit] == pytest.approx(expected.get(str(kind), least), abs=1e-6)
        chosen = np.arange(whole.n_latents) < 9
        chosen[small], chosen[9 + large] = False, True
        assert by_effect[unit] == pytest.approx(made.error(chosen) - base, abs=1e-5)
    for order, score in (("cosine", by_cosine), ("effect", by_effect)):
        way = walked(chain, order)[2].schedule
        for unit in range(len(score) - 1):
            one, other = (np.flatnonzero(matching.components.of_large == u) for u in (unit, unit + 1))
            alike = matching.components.kind[unit] == matching.components.kind[unit + 1]
            if len(one) and len(other) and alike and abs(score[unit] - score[unit + 1]) > 1e-6:
                assert (way.enters[9 + one[0]] < way.enters[9 + other[0]]) == (score[unit] < score[unit + 1])
    assert not np.array_equal(random_scores(matching, 0), random_scores(matching, 1))


def test_swapping_a_copy_for_its_original_changes_nothing():
    one = random_dictionary(12, 8, seed=1)
    _, _, found = walked([one, replace(one, name="other")])
    np.testing.assert_allclose(found.mse(), found.mse()[0], rtol=1e-5)
    np.testing.assert_allclose(found.l0(), found.l0()[0])
    assert set(found.schedule.phase) == {"swap"}


def test_a_path_to_missing_latents_only_drops_and_one_to_more_only_inserts():
    one = random_dictionary(12, 8, seed=1, activation=ReLU())
    less = replace(one, W_enc=one.W_enc[:, :8], b_enc=one.b_enc[:8], W_dec=one.W_dec[:8], name="less")
    _, _, down = walked([one, less], threshold=0.999)
    _, _, up = walked([less, one], threshold=0.999)
    assert (down.schedule.phase == "drop").sum() == 4 and set(down.schedule.phase) == {"swap", "drop"}
    assert (up.schedule.phase == "insert").sum() == 4 and set(up.schedule.phase) == {"swap", "insert"}
    assert up.mse()[-1] == pytest.approx(down.mse()[0], rel=1e-5)


def test_no_other_step_would_have_left_a_smaller_error_than_the_greedy_one():
    chain = family()[:2]
    whole, seen, found = walked(chain, "greedy")
    made, (matching,) = QuadraticError.from_sample(seen, whole.W_dec), match_latents(chain)
    units = [
        np.concatenate([matching.components.of_small, matching.components.of_large]) == unit
        for unit in range(len(matching.components.kind))
    ]
    mse = found.mse()
    for point in range(found.schedule.steps):
        chosen = found.schedule.chosen(point)
        left = [own for own in units if (chosen[own] == (np.flatnonzero(own) < 9)).all()]
        assert len(left) == found.schedule.steps - point
        least = min(made.error(chosen ^ own) for own in left)
        assert mse[point + 1] == pytest.approx(least, rel=1e-5)
