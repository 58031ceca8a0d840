"""Which tokens a latent is shown at: against a plain search over all of its tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyses.explorer.code_store import Column
from analyses.explorer.latents.examples import BANDS, ExampleCounts, random_keys, select_examples
from analyses.explorer.latents.histograms import BINS, activation_histogram

CONTEXT = 16


def column_of(seed: int, n: int, signed: bool = False) -> Column:
    generator = np.random.default_rng(seed)
    tokens = np.sort(generator.choice(20 * CONTEXT, n, replace=False)).astype(np.int32)
    values = generator.integers(1, 6, n).astype(np.float32)  # few values, so that there are ties
    return Column(tokens, values * generator.choice([-1, 1], n).astype(np.float32) if signed else values)


@pytest.mark.parametrize("n", [0, 1, 3, 40, 300])
@pytest.mark.parametrize("signed", [False, True])
def test_the_top_is_that_of_a_search_by_sequence(n, signed):
    column = column_of(1, n, signed)
    best = {}
    for token, value in zip(column.tokens.tolist(), np.abs(column.activations).tolist(), strict=True):
        if token // CONTEXT not in best or value > best[token // CONTEXT][0]:
            best[token // CONTEXT] = (value, token)
    expected = [token for value, token in sorted(best.values(), key=lambda pair: (-pair[0], pair[1]))][:7]
    found = select_examples(column, CONTEXT, ExampleCounts(top=7), 0)
    assert found.token[found.group == 0].tolist() == expected


@given(st.integers(0, 1000), st.integers(0, 200))
def test_each_band_holds_tokens_of_its_fifth_of_the_activations(seed, n):
    column = column_of(seed, n)
    found = select_examples(column, CONTEXT, ExampleCounts(band=3), seed)
    values = dict(zip(column.tokens.tolist(), column.activations.tolist(), strict=True))
    shown = [[values[t] for t in found.token[found.group == band].tolist()] for band in range(1, BANDS + 1)]
    ordered = sorted(values.values())
    for band, part in enumerate(np.array_split(ordered, BANDS)):
        assert len(shown[band]) == min(3, len(part))
        assert all(part[0] <= value <= part[-1] for value in shown[band])
    assert all(len(set(found.token[found.group == g].tolist())) == (found.group == g).sum() for g in range(BANDS + 2))


def test_random_examples_are_equally_likely():
    """Of 40 tokens, 5 drawn 4,000 times: each is drawn 500 times, give or take 5 standard deviations."""
    column, counts = column_of(0, 40), np.zeros(20 * CONTEXT)
    for seed in range(4000):
        found = select_examples(column, CONTEXT, ExampleCounts(random=5), seed)
        counts[found.token[found.group == BANDS + 1]] += 1
    assert (np.abs(counts[column.tokens] - 500) < 5 * np.sqrt(4000 * 0.125 * 0.875)).all()


def test_keys_depend_on_token_and_seed_alone():
    tokens = np.arange(100, dtype=np.int32)
    assert (random_keys(tokens, 3)[50:] == random_keys(tokens[50:], 3)).all()
    assert len(set(random_keys(tokens, 3).tolist()) | set(random_keys(tokens, 4).tolist())) == 200


@given(st.lists(st.floats(-50, 50, width=32).filter(bool), max_size=60))
def test_a_histogram_counts_every_activation_once(values):
    histogram = activation_histogram(np.array(values, dtype=np.float32))
    assert histogram.counts.sum() == len(values)
    largest = max(map(abs, values), default=0)
    assert histogram.width * BINS == pytest.approx(largest)
    if largest > 0:
        edges = np.linspace(0, largest, BINS + 1)
        assert histogram.counts[-1] >= 1
        inside = [sum(edges[i] <= abs(v) < edges[i + 1] for v in values) for i in range(BINS - 1)]
        assert np.abs(histogram.counts[:-1] - inside).sum() <= 2 * sum(  # one step of rounding at an edge
            any(abs(abs(v) - e) <= 1e-6 * largest for e in edges) for v in values
        )
