"""Max cosines by what differs between dictionaries, on dictionaries whose likeness is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from analyses.geometry import embed, geometry, max_cosines, relation
from dictlab import DictlabError, Metadata, ReLU, TopK
from tests.planted import random_dictionary


def member(
    name: str, *, seed: int = 0, objective: str = "local", n: int = 24, activation=None, l1: float | None = None
):
    about = Metadata(site="here", objective=objective, seed=seed, training={} if l1 is None else {"l1": l1})
    return random_dictionary(n, 8, seed=seed, activation=activation or TopK(4), metadata=about, name=name)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (member("b", seed=1), "cross-seed"),
        (member("b", objective="e2e"), "cross-objective"),
        (member("b", n=30), "cross-width"),
        (member("b", activation=TopK(5)), "cross-sparsity"),
        (member("b", n=30, objective="e2e"), "cross-objective-width"),
        (member("b"), "same settings"),
    ],
)
def test_pairs_are_named_by_what_differs(other, expected):
    assert relation(member("a"), other) == expected == relation(other, member("a"))


def test_a_coefficient_means_something_else_under_another_objective():
    a, b = (member(o, objective=o, activation=ReLU(), l1=l1) for o, l1 in (("local", 10.0), ("e2e", 0.3)))
    assert relation(a, b) == "cross-objective"
    assert relation(a, member("c", activation=ReLU(), l1=3.0)) == "cross-sparsity"


def test_within_a_dictionary_a_latent_is_compared_with_the_others_only():
    a = member("a")
    duplicated = replace(a, W_dec=torch.cat([a.W_dec[:1], a.W_dec[:-1]]))
    within = max_cosines(duplicated, duplicated)
    assert within[0] == pytest.approx(1) and within[1] == pytest.approx(1)
    assert within[2:].max() < 0.999


def test_the_report_holds_every_ordered_pair_with_chance_and_interval():
    family = [member("a"), member("b", seed=1), member("c", objective="e2e")]
    report = geometry(family, umap=False)
    pairs = report.tables["pairs"].frame
    assert len(pairs) == 9 and set(pairs["relation"]) == {"within", "cross-seed", "cross-objective"}
    same = pairs[(pairs["from"] == "a") & (pairs["to"] == "c")].iloc[0]
    assert same["mean"] == pytest.approx(1)  # equal seeds drew equal directions
    other = pairs[(pairs["from"] == "a") & (pairs["to"] == "b")].iloc[0]
    assert other["low"] <= other["mean"] <= other["high"]
    assert other["mean"] == pytest.approx(other["chance (isotropic)"], abs=0.1)
    assert set(report.plots) == {"distributions", "heatmap"}


def test_dead_latents_are_on_no_map_and_in_no_mean():
    a = replace(member("a"), firing_rate=(torch.arange(24) < 20).float())
    report = geometry([a, member("b", seed=1)])
    points = report.plots["map"].frame
    assert (points["dictionary"] == "a").sum() == 20 and (points["dictionary"] == "b").sum() == 24
    assert points["latent"][points["dictionary"] == "a"].max() == 19


def test_the_map_puts_clusters_of_directions_apart_and_is_repeatable():
    centres = torch.eye(3).repeat_interleave(40, dim=0)
    directions = centres + 0.05 * torch.randn(120, 3, generator=torch.Generator().manual_seed(0))
    placed = embed(directions, seed=0)
    middles = np.stack([part.mean(axis=0) for part in np.split(placed, 3)])
    radius = max(
        np.linalg.norm(part - middle, axis=1).mean() for part, middle in zip(np.split(placed, 3), middles, strict=True)
    )
    apart = min(np.linalg.norm(middles[i] - middles[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert apart > 3 * radius
    assert np.array_equal(placed, embed(directions, seed=0))


def test_dictionaries_of_different_widths_of_activation_are_refused():
    with pytest.raises(DictlabError, match=r"a and b.*8 and 9"):
        geometry([random_dictionary(name="a"), random_dictionary(24, 9, name="b")], umap=False)
