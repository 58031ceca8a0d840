"""Regions that one of two dictionaries fills, on directions whose regions are planted."""

from itertools import product

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from analyses.common.neighbours import nearest
from analyses.similarity.geometry import density_regions as module
from analyses.similarity.geometry.density_regions import FULL, density_ratio, pooled, regions

CLUSTER = 40


def pool_of(a: torch.Tensor, b: torch.Tensor, k: int = 15):
    return pooled(
        nearest(a, a, top=k, itself=False), nearest(a, b, top=k), nearest(b, a, top=k), nearest(b, b, top=k, itself=False), k
    )  # fmt: skip


def drawn(n: int, d: int = 12, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def planted(seed: int = 0, n: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Two noisy copies of n directions; the first also has a cluster about a direction of its own."""
    shared, noise = drawn(n, seed=seed), 0.05
    a, b = (normalize(shared + noise * drawn(n, seed=seed + s), dim=1) for s in (1000, 2000))
    centre = drawn(1, seed=seed + 3000)
    return torch.cat([a, normalize(centre + 0.3 * drawn(CLUSTER, seed=seed + 4000), dim=1)]), b


@pytest.mark.parametrize("seed", range(5))
def test_the_planted_cluster_is_found_and_nothing_else(seed):
    a, b = planted(seed)
    found = [region for region in regions(pool_of(a, b), permutations=200) if region.p <= 0.05]
    assert len(found) == 1 and found[0].of_a
    assert set(range(300, 300 + CLUSTER)) <= set(found[0].members.tolist())
    assert len(found[0].members) <= CLUSTER + 3  # a latent that happens to lie in it
    assert found[0].ratio > 5


def test_which_dictionary_comes_first_does_not_matter():
    a, b = planted()
    one, other = (regions(pool_of(*pair), permutations=200)[0] for pair in ((a, b), (b, a)))
    assert one.of_a and not other.of_a
    assert other.members.tolist() == (one.members + len(b)).tolist()
    assert other.ratio == pytest.approx(one.ratio) and other.p == one.p == pytest.approx(1 / 201)


def test_two_draws_from_one_distribution_have_regions_no_more_often_than_is_stated():
    runs = 60
    false = 0
    for seed in range(runs):
        a, b = drawn(150, seed=2 * seed), drawn(150, seed=2 * seed + 1)
        false += any(region.p <= 0.05 for region in regions(pool_of(a, b), permutations=99, seed=seed))
    assert false <= 8  # 3 are expected; 9 or more happen once in 300


def test_unequal_numbers_of_latents_make_no_region():
    false = 0
    for seed in range(20):
        a, b = drawn(60, seed=2 * seed), drawn(300, seed=2 * seed + 1)
        false += any(region.p <= 0.05 for region in regions(pool_of(a, b), permutations=99, seed=seed))
    assert false <= 4  # 1 is expected


def test_crowded_directions_of_one_shape_are_no_region():
    """Density differs from place to place, but for both alike."""
    shape = torch.linspace(3, 0.2, 12)
    a, b = (normalize(drawn(200, seed=seed) * shape, dim=1) for seed in (1, 2))
    assert not [region for region in regions(pool_of(a, b), permutations=200) if region.p <= 0.05]


def test_a_rotation_of_the_space_changes_nothing():
    a, b = planted()
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(5))).Q
    one, other = (regions(pool_of(x, y), permutations=99) for x, y in ((a, b), (a @ rotation, b @ rotation)))
    assert [r.members.tolist() for r in one] == [r.members.tolist() for r in other]
    assert [r.p for r in one] == [r.p for r in other]


def test_the_order_of_latents_does_not_matter():
    a, b = planted()
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(3))
    one, other = (regions(pool_of(x, b), permutations=99)[0] for x in (a, a[order]))
    assert set(order[other.members].tolist()) == set(one.members.tolist())


def test_a_dictionary_and_its_copy_have_no_region():
    a, _ = planted()
    assert not [region for region in regions(pool_of(a, a.clone()), permutations=99) if region.p <= 0.05]


def test_many_copies_of_one_direction_are_a_region():
    a = torch.cat([drawn(100), drawn(1, seed=9).expand(25, -1)])
    found = regions(pool_of(a, drawn(100, seed=8)), permutations=99)[0]
    assert found.of_a and set(range(100, 125)) <= set(found.members.tolist()) and found.p <= 0.05


@pytest.mark.parametrize(("n_a", "n_b"), [(2, 2), (2, 40), (5, 200), (14, 3)])
def test_fewer_latents_than_neighbours_are_no_obstacle(n_a, n_b):
    pool = pool_of(drawn(n_a), drawn(n_b, seed=1))
    assert pool.neighbours.shape == (n_a + n_b, min(15, n_a + n_b - 1))
    assert np.isfinite(density_ratio(pool)).all()
    assert all(0 < region.p <= 1 for region in regions(pool, permutations=20))


def test_the_pool_is_that_of_all_directions_together():
    a, b = drawn(20), drawn(30, seed=1)
    both = torch.cat([a, b])
    cosine = both @ both.T
    cosine.fill_diagonal_(-2)
    expected = cosine.topk(7, dim=1).indices
    assert torch.equal(torch.from_numpy(pool_of(a, b, 7).neighbours), expected)


def test_the_ratio_is_that_of_the_formula():
    pool = pool_of(drawn(20), drawn(30, seed=1), 7)
    for i, near in enumerate(pool.neighbours):
        n_a, n_b = 20 - (i < 20), 30 - (i >= 20)
        m_a = sum(j < 20 for j in near)
        share = n_a / (n_a + n_b)
        expected = ((m_a + share) / n_a) / ((7 - m_a + 1 - share) / n_b)
        assert density_ratio(pool)[i] == pytest.approx(expected)


def test_full_surroundings_are_the_rarest_of_all_labellings():
    """Against brute force: every way to label the neighbours of a latent."""
    pool = pool_of(drawn(5), drawn(6, seed=1), 4)
    least = module._thresholds(pool)
    labellings = [labels for labels in product((0, 1), repeat=10) if sum(labels) == 4]  # one of A's five is the latent
    for count in range(5):
        tail = np.mean([sum(labels[:4]) >= count for labels in labellings])
        assert (count >= least.a) == (tail <= FULL)


def test_the_size_of_the_null_is_that_of_one_shuffle_at_a_time(monkeypatch):
    a, b = planted(n=60)
    pool = pool_of(a, b)
    arguments = (pool, module.adjacent(pool), module._thresholds(pool), 30, 4)
    at_once = module._largest_by_chance(*arguments)
    monkeypatch.setattr(module, "CELLS", 1)
    assert np.array_equal(at_once, module._largest_by_chance(*arguments)) and at_once.max() > 1
