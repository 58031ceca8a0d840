"""Max cosines by what differs between dictionaries, on dictionaries whose likeness is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from analyses.common.seed_floor import relation
from analyses.similarity.geometry.direction_umap import embed
from analyses.similarity.geometry.geometry import geometry, max_cosines
from analyses.similarity.geometry.max_cosines import resampled
from dictlab import DictlabError, Metadata, ReLU, TopK
from dictlab.dictionary.activation_functions import JumpReLU
from tests.planted import SITE, random_dictionary, tiny_model


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
    report = geometry(family, umap_points=0)
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


def test_the_floor_is_what_the_same_latents_reach_in_another_seed():
    family = [member("a"), member("b", seed=1), member("c", seed=2, objective="e2e")]
    pairs = geometry(family, umap_points=0).tables["pairs"].frame.set_index(["from", "to"])
    cross = pairs.loc["a", "c"]
    a, b, c = family
    expected = float((max_cosines(a, b) - max_cosines(a, c)).mean())
    assert cross["below seed floor"] == pytest.approx(expected, abs=1e-6)
    assert cross["below low"] <= expected <= cross["below high"]
    assert np.isnan(pairs.loc["a", "b"]["below seed floor"]) and np.isnan(pairs.loc["c", "a"]["below seed floor"])


def test_pairs_of_one_seed_are_averaged_apart():
    family = [member("a"), member("b", seed=1), member("c", objective="e2e")]  # a and c begin with the same directions
    relations = geometry(family, umap_points=0).tables["relations"].frame.set_index(["relation", "seeds"])["mean"]
    assert relations["cross-objective", "same"] == pytest.approx(1)
    assert relations["cross-objective", "different"] < 0.9


def test_intervals_are_those_of_resampling_latents_and_differences_are_paired():
    generator = torch.Generator().manual_seed(0)
    own = torch.rand(400, generator=generator)
    values = {("a", "a"): own, ("a", "b"): own + 0.1, ("b", "a"): own, ("b", "b"): own}
    means = resampled(values, ["a", "b"], 0)
    assert means["a", "a"].std() == pytest.approx(float(own.std()) / 20, rel=0.1)  # the standard error
    assert np.allclose(means["a", "b"] - means["a", "a"], 0.1, atol=1e-6)
    assert not np.allclose(means["b", "b"], means["a", "a"])  # the latents of another dictionary are drawn apart


def test_a_dictionary_that_crowds_more_is_said_to_crowd_more():
    a = member("a")
    crowded = replace(a, W_dec=a.W_dec[0] + 0.3 * a.W_dec, name="b")
    row = geometry([crowded, a], umap_points=0).tables["crowding"].frame.iloc[0]
    assert row["dictionary"] == "b" and row["low"] > 0.1 and row["low"] < row["difference"] < row["high"]


def test_without_two_seeds_the_report_says_that_there_is_no_floor():
    pair = [member("a"), member("c", objective="e2e")]
    assert any("no floor" in warning for warning in geometry(pair, umap_points=0).warnings)
    assert not any("no floor" in w for w in geometry([member("a"), member("b", seed=1)], umap_points=0).warnings)


def with_region(seed: int = 0) -> list:
    """Two dictionaries of 200 directions each that are alike, and 40 more in a corner that only the first has."""
    directions = [torch.randn(200, 12, generator=torch.Generator().manual_seed(s)) for s in (seed, seed + 1, seed + 2)]
    corner = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed + 3)) + 0.15 * directions[2][:40]
    a, b = random_dictionary(240, 12, name="a"), random_dictionary(200, 12, name="b")
    alike = directions[0] + 0.1 * directions[1]
    return [replace(a, W_dec=torch.cat([directions[0], corner])), replace(b, W_dec=alike)]


def test_a_region_is_listed_with_its_latents_and_marked_on_the_map():
    report = geometry(with_region(), umap_points=120, tokens=0)
    (row,) = report.tables["regions"].frame.to_dict("records")
    assert (row["filled by"], row["not by"]) == ("a", "b") and row["p-value"] <= 0.05 and row["density ratio"] > 5
    latents = report.tables["region_latents"].frame
    assert len(set(range(200, 240)) & set(latents["latent"])) >= 38 and len(latents) == row["latents"] <= 43
    contrast = report.tables["contrasts"].frame.iloc[0]
    assert contrast["regions"] == 1 and contrast["regions of other"] == 0
    assert contrast["share"] == pytest.approx(row["latents"] / 240)
    points = report.plots["map"].frame
    assert len(points) == 120 and report.plots["map"].marks == "region"
    marked = points[points["region"].notna()]
    assert len(marked) >= 20 and set(marked["latent"]) <= set(latents["latent"]) and set(marked["dictionary"]) == {"a"}


def test_dead_latents_are_in_no_region():
    a, b = with_region()
    a = replace(a, firing_rate=(torch.arange(240) < 200).float())
    assert geometry([a, b], umap_points=0, tokens=0).tables["regions"].frame.empty


def test_a_report_without_regions_can_be_saved(tmp_path):
    folder = geometry([member("a"), member("b", seed=1)], umap_points=0, tokens=0).save(tmp_path / "out")
    assert (folder / "regions.csv").read_text().startswith("region,filled by")


def test_points_of_the_map_and_regions_show_their_contexts(tmp_path):
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog.\n" * 2000)
    a, b = (
        random_dictionary(60, 16, seed=s, name=n, activation=ReLU(), metadata=Metadata(site=SITE))
        for s, n in ((0, "a"), (1, "b"))
    )
    report = geometry([a, b], model=tiny_model(), text=str(tmp_path / "text.txt"), tokens=640)
    points = report.plots["map"].frame
    assert all("No firing rates" in warning for warning in report.warnings)  # the random files state none
    assert points["context 1"].str.contains("«").any()
    assert "context 1" in report.plots["map"].labels and report.settings["tokens"] == 640
    assert "contexts" in report.tables["regions"].frame.columns


def test_a_model_out_of_reach_is_told_and_the_rest_is_there():
    report = geometry([member("a"), member("b", seed=1)], umap_points=0)
    unknown = "a, b: no firing rates are known, so dead latents take part."
    assert "No contexts" in report.warnings[0] and report.settings["tokens"] == 0
    assert report.warnings[1:] == geometry([member("a"), member("b", seed=1)], umap_points=0, tokens=0).warnings
    assert report.warnings[1:] == (unknown,)


def test_dictionaries_of_different_widths_of_activation_are_refused():
    with pytest.raises(DictlabError, match=r"a and b.*8 and 9"):
        geometry([random_dictionary(name="a"), random_dictionary(24, 9, name="b")], umap_points=0)


@pytest.mark.parametrize(("name", "setting"), [("batchtopk", "k"), ("jumprelu", "l0"), ("relu", "l1")])
def test_dictionaries_whose_files_hold_thresholds_are_told_apart_by_what_they_were_trained_with(name, setting):
    def member(value, seed):
        about = Metadata(objective="local", seed=seed, tokens=1, training={"activation": name, setting: value})
        activation = ReLU() if name == "relu" else JumpReLU(torch.full((12,), 0.1))
        return random_dictionary(12, activation=activation, seed=seed, metadata=about)

    assert relation(member(16, 0), member(32, 1)) == "cross-sparsity"
    assert relation(member(16, 0), member(16, 1)) == "cross-seed"
