"""Components against networkx-free brute force on the whole cosine matrix, and against dictionaries of known kinship."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from analyses.composition.path import latent_graph as module
from analyses.composition.path.latent_graph import (
    Components,
    components,
    count_components,
    graph,
    percolates,
    percolation,
)
from analyses.composition.path.latent_graph_report import percolation_plot

BASE = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0))).Q  # orthogonal directions


def everything(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(x), dtype=torch.bool)


def of(small: torch.Tensor, large: torch.Tensor, threshold: float = 0.7, **options) -> Components:
    return components(graph(small, large, threshold, everything(small), everything(large), **options))


def counts(found: Components) -> dict[str, int]:
    return {count.kind: count.components for count in count_components(found) if count.components}


def flooded(cosine: np.ndarray, threshold: float) -> set[frozenset]:
    """Components by flooding the whole matrix."""
    n, m = cosine.shape
    left, groups = {*range(n + m)}, set()
    while left:
        group, new = set(), {min(left)}
        while new:
            group |= new
            new = {
                k
                for node in new
                for k in (
                    n + np.flatnonzero(cosine[node] >= threshold)
                    if node < n
                    else np.flatnonzero(cosine[:, node - n] >= threshold)
                )
            } - group
        left -= group
        groups.add(frozenset(int(k) for k in group))
    return groups


@given(st.integers(0, 10**6), st.sampled_from([0.2, 0.45, 0.6, 0.8]), st.sampled_from([3, 7, 2048]))
def test_components_are_those_of_the_whole_matrix_at_every_threshold_and_block(seed, threshold, block):
    generator = torch.Generator().manual_seed(seed)
    small, large = torch.randn(9, 5, generator=generator), torch.randn(14, 5, generator=generator)
    made = graph(small, large, threshold, everything(small), everything(large), block=block)
    cosine = (normalize(small, dim=1) @ normalize(large, dim=1).T).numpy()
    for level in (threshold, 0.5, 0.9):
        found = components(made, level)
        labels = np.concatenate([found.of_small, found.of_large])
        groups = {frozenset(np.flatnonzero(labels == k).tolist()) for k in range(len(found.kind))}
        assert groups == flooded(cosine, level)
    np.testing.assert_allclose(made.nearest_small, cosine.max(1), atol=1e-6)
    np.testing.assert_allclose(made.nearest_large, cosine.max(0), atol=1e-6)
    np.testing.assert_allclose(made.weakest, np.where(cosine >= threshold, cosine, np.inf).min(0), atol=1e-6)


def test_cutting_edges_down_to_a_forest_on_the_way_changes_nothing(monkeypatch):
    small, large = torch.randn(40, 4), torch.randn(60, 4)
    at_once = of(small, large, 0.6)
    monkeypatch.setattr(module, "EDGES", 10)
    on_the_way = of(small, large, 0.6, block=7)
    assert (at_once.of_small == on_the_way.of_small).all() and (at_once.of_large == on_the_way.of_large).all()


def test_a_dictionary_and_itself_or_a_permutation_or_another_scale_are_the_same():
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    for other in (BASE, BASE[order], 3 * BASE[order]):
        found = of(BASE, other)
        assert counts(found) == {"same": 32}
    assert (found.of_large == found.of_small[order]).all()


def test_kinds_are_those_of_planted_kinship():
    """Copies split and merge, missing latents are orphans, others novel, and several to several are tangled."""
    assert counts(of(BASE, torch.cat([BASE, BASE]))) == {"split": 32}
    assert counts(of(torch.cat([BASE, BASE]), BASE)) == {"merge": 32}
    assert counts(of(torch.cat([BASE, BASE]), torch.cat([BASE, BASE]))) == {"tangled": 32}
    assert counts(of(BASE, BASE[:20])) == {"same": 20, "orphan": 12}
    assert counts(of(BASE[:20], BASE)) == {"same": 20, "novel": 12}
    assert counts(of(BASE, -BASE)) == {"novel": 32, "orphan": 32}  # signed: the opposite is something else
    composite = normalize(BASE[:2].sum(0, keepdim=True), dim=1)  # a cosine of 0.707 with both
    assert counts(of(BASE[:2], composite)) == {"merge": 1}
    assert counts(of(BASE[:3], torch.cat([composite, BASE[:1], BASE[2:3]]))) == {"tangled": 1, "same": 1}


def test_dead_latents_belong_nowhere_and_zero_rows_are_near_nothing():
    alive = torch.arange(32) != 5
    found = components(graph(BASE, BASE, 0.7, alive, everything(BASE)))
    assert found.of_small[5] == -1 and counts(found) == {"same": 31, "novel": 1}
    zero = torch.where(alive[:, None], BASE, 0.0)
    assert counts(of(zero, BASE)) == {"same": 31, "novel": 1, "orphan": 1}
    nothing = graph(BASE, BASE, 0.7, torch.zeros(32, dtype=torch.bool), everything(BASE))
    assert counts(components(nothing)) == {"novel": 32} and np.isnan(nothing.nearest_large).all()


def test_one_latent_each_is_enough():
    assert counts(of(BASE[:1], BASE[:1])) == {"same": 1}
    assert counts(of(BASE[:1], BASE[1:2])) == {"novel": 1, "orphan": 1}


def test_a_low_threshold_percolates_and_a_high_one_does_not():
    """A chain of directions, each near the next: one component until the threshold passes their cosine."""
    angles = torch.linspace(0, 3.0, 60)
    chain = torch.stack([angles.cos(), angles.sin()], dim=1)
    small, large = chain[::2], chain[1::2]
    made = graph(small, large, 0.9, everything(small), everything(large))
    assert percolates(components(made)) and components(made).largest == 60
    points = percolation(made, thresholds=(0.5, 0.9999))
    assert [point.share for point in points] == [1.0, 1.0, pytest.approx(1 / 60)]
    assert points[-1].threshold == 0.9999 and points[-1].counts["novel"] == points[-1].counts["orphan"] == 30
    assert not percolates(of(BASE, BASE))
    figure = percolation_plot({"a → b": points}, 0.9).figure
    assert len(figure.axes) == 2
