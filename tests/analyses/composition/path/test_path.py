"""The report of a path, the dictionaries at its points, and what is said when there is no path."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from analyses.composition.path.path import path
from analyses.composition.stitching.stitching import stitching
from dictlab import Dictionary, DictlabError, ReLU, TopK, load
from tests.planted import random_dictionary, tiny_model

SAMPLE = {"tokens": 2000, "contexts": 12}


def chain() -> list[Dictionary]:
    return [random_dictionary(n, 16, seed=n, name=f"of {n}", activation=TopK(4)) for n in (12, 20, 30)]


def reported(text, **options):
    small, *larger = chain()
    return path(
        small, larger, model=tiny_model(), text=text, **{"threshold": 0.55, "random_orders": 2} | SAMPLE | options
    )


def stitched(text, **options):
    small, *larger = chain()
    return stitching(small, larger, model=tiny_model(), text=text, threshold=0.55, **SAMPLE | options)


def test_the_report_goes_by_every_dictionary_and_its_tables_agree(text, tmp_path):
    report = reported(text, waypoints=2)
    points, phases, waypoints = (report.tables[name].frame for name in ("path", "phases", "waypoints"))
    by_name = waypoints[waypoints["is"] != ""].set_index("is")
    assert list(by_name.index) == ["of 12", "of 20", "of 30"] and by_name["latents"].tolist() == [
        12,
        20,
        28,
    ]  # 2 are dead
    joined = waypoints.merge(points, on="point")
    np.testing.assert_allclose(joined["MSE on the path"], joined["MSE_y"])
    assert (joined["latents_x"] == joined["latents_y"]).all()
    assert phases["steps"].sum() == len(points) - 1 == points["point"].max()
    np.testing.assert_allclose(phases["MSE after"][:-1], phases["MSE before"][1:])
    assert ((phases["low"] <= phases["change"]) & (phases["change"] <= phases["high"])).all()
    inside = points.dropna(subset=["low"])
    assert ((inside["low"] <= inside["MSE"]) & (inside["MSE"] <= inside["high"])).all()
    counts = report.tables["components"].frame
    assert counts.groupby("pair")["latents of SMALL"].sum().tolist() == [12, 20]
    report.save(tmp_path / "out")
    assert (tmp_path / "out" / "path.png").exists() and (tmp_path / "out" / "percolation.png").exists()


def test_with_the_own_biases_the_waypoints_are_the_dictionaries_themselves(text):
    waypoints = reported(text, bias="keep").tables["waypoints"].frame
    alone = stitched(text).tables["quality"].frame.set_index("dictionary")
    for name, row in waypoints[waypoints["is"] != ""].set_index("is").iterrows():
        for metric in ("MSE", "L0", "CE increase", "KL"):
            assert row[metric] == pytest.approx(alone[metric][name], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("order", ["effect", "random"])
def test_ends_of_phases_do_not_depend_on_the_order(text, order):
    one, other = reported(text).tables["phases"].frame, reported(text, order=order).tables["phases"].frame
    for column in ("steps", "latents after", "MSE after", "L0 after"):
        np.testing.assert_allclose(one[column], other[column], rtol=1e-5)


def test_stitch_writes_the_dictionary_at_a_point_of_the_path(text, tmp_path):
    points = reported(text).tables["path"].frame
    report = stitched(text, until="latents=16")
    report.save(tmp_path / "out")
    made = load(tmp_path / "out" / "stitched.safetensors")
    where = points[points["latents"] >= 16].iloc[0]
    assert made.metadata.training["point"] == where["point"] and made.n_emitting == where["latents"]
    assert "of the path" in report.summary and report.settings["until"] == "latents=16"
    quality = report.tables["quality"].frame.set_index("dictionary")
    assert quality["latents"]["stitched"] == where["latents"]


def test_an_until_that_cannot_be_read_is_refused_before_any_dictionary_is_opened():
    with pytest.raises(DictlabError, match="expected latents=N, mse=VALUE or l0=VALUE"):
        stitching("no-such-file.safetensors", ["nor-this.safetensors"], until="foo")


def test_until_stops_where_a_value_is_first_reached_from_the_side_of_the_start(text):
    points = reported(text).tables["path"].frame
    error, l0 = points["MSE"], points["L0"]
    for name, curve in (("mse", error), ("l0", l0)):
        value = (curve[0] + curve.max()) / 2
        point = stitched(text, until=f"{name}={value}").settings["point"]
        assert curve[point] >= value and (curve[:point] < value).all()
    with pytest.raises(DictlabError, match=r"never reached; along the path l0 is"):
        stitched(text, until="l0=100")


def test_the_end_of_the_path_with_the_own_bias_is_the_largest_dictionary(text):
    """A last point with more latents than any before it, since swaps put two in place of one; there the bias is the
    best one, of LARGE's latents."""
    small, large = (random_dictionary(n, 16, seed=n, name=f"of {n}", activation=ReLU()) for n in (4, 30))
    large = replace(large, W_dec=torch.cat([small.W_dec, small.W_dec, large.W_dec[8:]]))
    given = {"model": tiny_model(), "text": text, "threshold": 0.999} | SAMPLE
    alive = path(small, large, random_orders=0, **given).tables["path"].frame["latents"].iloc[-1]
    report = stitching(small, large, until=f"latents={alive}", refit="none", **given)
    own = replace(report.dictionaries["stitched"], b_out=large.b_out)
    x = torch.randn(40, 16)
    torch.testing.assert_close(own.reconstruct(x), large.reconstruct(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"until": "latents=5"}, "never reached; along the path latents is 12 to"),
        ({"until": "latents=1000"}, "never reached; along the path latents is 12 to"),
        ({"until": "mse=-1"}, "never reached"),
        ({"until": "kl=1"}, "expected latents=N, mse=VALUE or l0=VALUE"),
        ({"until": "mse"}, "expected latents=N, mse=VALUE or l0=VALUE"),
        ({"until": "mse=nan"}, "expected latents=N, mse=VALUE or l0=VALUE"),
    ],
)
def test_points_that_are_not_on_the_path_are_refused(text, options, says):
    with pytest.raises(DictlabError, match=says):
        stitched(text, **options)


def silent(dictionary: Dictionary) -> Dictionary:
    return replace(dictionary, activation=ReLU(), b_enc=torch.full_like(dictionary.b_enc, -1e6))


@pytest.mark.parametrize("analysis", [path, stitching])
def test_what_cannot_be_stitched_is_refused_in_a_sentence(analysis, text):
    small, large, _ = chain()
    given = {"model": tiny_model(), "text": text, **SAMPLE}
    with pytest.raises(DictlabError, match="of 12 was given twice"):
        analysis(small, [large, small], **given)
    with pytest.raises(DictlabError, match="at least one LARGE"):
        analysis(small, [], **given)
    for dead in ((silent(small), [large]), (small, [silent(large)])):
        with pytest.raises(DictlabError, match="no latent was active on"):
            analysis(*dead, **given)
    with pytest.raises(DictlabError, match="site is"):
        elsewhere = replace(large.metadata, site="blocks.2.hook_resid_pre")
        analysis(small, [replace(large, metadata=elsewhere)], **given)


@pytest.mark.parametrize("analysis", [path, stitching])
def test_odd_dictionaries_are_gone_through_all_the_same(analysis, text):
    """One latent, zero decoder rows, duplicated latents."""
    one = random_dictionary(1, 16, seed=1, name="one", activation=TopK(1))
    double = random_dictionary(10, 16, seed=2, name="double", activation=ReLU())
    double = replace(double, W_dec=torch.cat([double.W_dec[:5], double.W_dec[:5]]))
    flat = random_dictionary(9, 16, seed=3, name="flat")
    flat = replace(flat, W_dec=torch.where(torch.arange(9)[:, None] < 3, 0.0, flat.W_dec))
    report = analysis(one, [double, flat], model=tiny_model(), text=text, **SAMPLE)
    frame = report.tables["quality" if analysis is stitching else "phases"].frame
    assert (
        np.isfinite(frame.select_dtypes("number").drop(columns="the same, random order", errors="ignore")).all().all()
    )


def test_a_giant_component_is_warned_of(text):
    assert not any("one component holds" in warning for warning in reported(text, threshold=0.99).warnings)
    assert any("one component holds" in warning for warning in reported(text, threshold=0.1).warnings)
