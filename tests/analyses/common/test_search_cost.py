"""The search for nearest directions says how far it is, and what it is going to cost."""

import pytest
import torch

from analyses.common import neighbours as search
from analyses.common import search_cost as cost
from analyses.similarity.matching.latent_pairs import matching_cost
from dictlab.runtime import progress
from tests.planted import random_dictionary


def rows(n: int) -> torch.Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(n))


def test_a_large_search_counts_its_tiles_and_finds_the_same(capsys, monkeypatch):
    a, b = rows(200), rows(300)
    expected = search.neighbours(a, b, top=3)
    monkeypatch.setattr(search, "WORTH_SHOWING", 1.0)
    monkeypatch.setattr(progress, "WORTH_A_LINE", 0.0)
    found = search.neighbours(a, b, top=3, tile=(64, 8))
    assert all(torch.equal(one.rows, other.rows) for one, other in zip(found, expected, strict=True))
    assert "nearest of 200 and 300 directions: 38 of 38 tiles (100%)" in capsys.readouterr().err


def test_the_cost_grows_as_the_number_of_cosines_and_small_pairs_are_free(monkeypatch):
    monkeypatch.setattr(cost, "PROBED", 10)
    monkeypatch.setattr(cost, "seconds_of", lambda work: (work(), 2.0)[1])
    compared = []
    pairs = [(rows(100), rows(50)), (rows(40), rows(50)), (rows(10), rows(10))]
    estimate = cost.search_cost("x", pairs, lambda a, b: compared.append((len(a), len(b))), times=3)
    assert compared == [(10, 10)]
    assert estimate.seconds == pytest.approx(3 * 2.0 * (100 * 50 + 40 * 50) / 100)
    assert cost.search_cost("x", pairs[2:], lambda a, b: 1 / 0).seconds == 0


def test_a_comparison_of_large_dictionaries_is_announced(capsys, monkeypatch):
    monkeypatch.setattr(cost, "PROBED", 10)
    monkeypatch.setattr(cost, "seconds_of", lambda work: (work(), 60.0)[1])
    matching_cost([random_dictionary(40, seed=seed) for seed in (0, 1)]).announce()
    assert "matching will take about 2:24:00" in capsys.readouterr().err  # 9 searches of 16 times the part
