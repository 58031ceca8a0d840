"""A report that was saved and loaded is the one that was saved."""

import json
import shutil

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from dictlab import DictlabError, Report
from dictlab.reports.cards import Card, Cards, Passage, Piece
from dictlab.reports.contents import Scatter
from tests.reports.test_report import build_dictionary, build_report

POINTS = pd.DataFrame({"x": [0.0, 1.0, np.nan], "y": [1.0, 2.0, 3.0], "kind": ["a", "b", "a"], "latent": [3, 5, 7]})
CARDS = Cards(
    (Card("Latent 3", {"active on": "2%"}, {"Most active at": (Passage((Piece("a"), Piece(" b", 0.5)), 1),)}),),
    "Two latents.",
)


def scatter() -> Scatter:
    figure = Figure(figsize=(3, 2))
    ax = figure.subplots()
    ax.scatter(POINTS.x, POINTS.y)
    ax.axvline(0.4)
    ax.set(xlabel="cosine", ylabel="change")
    return Scatter(figure, "Points.", POINTS, "x", "y", "kind", ("latent",), colours={"a": "#111", "b": "#222"})


def every_part(**changes) -> Report:
    report = build_report()
    return build_report(plots={**report.plots, "map": scatter()}, cards={"latents": CARDS}, passed=True, **changes)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    report = every_part()
    folder = report.save(tmp_path_factory.mktemp("report") / "out", command="dictlab report pairs a b")
    return report, Report.load(folder), folder


def test_words_and_record(pair):
    report, loaded, folder = pair
    for name in ("title", "summary", "warnings", "passed", "cautions"):
        assert getattr(loaded, name) == getattr(report, name), name
    assert loaded.settings == {"seed": 3, "top": [1, 2]}, "as JSON holds them"
    assert loaded.provenance() == json.loads((folder / "report.json").read_text())["provenance"]
    assert loaded.provenance()["command"] == "dictlab report pairs a b"


def test_tables_in_their_order(pair):
    report, loaded, _ = pair
    assert list(loaded.tables) == list(report.tables)
    for name, table in report.tables.items():
        pd.testing.assert_frame_equal(loaded[name], table.frame, check_exact=True)
        assert loaded.tables[name].caption == table.caption


def test_points_axes_and_pictures_of_plots(pair, tmp_path):
    report, loaded, folder = pair
    assert list(loaded.plots) == list(report.plots)
    assert loaded.plots["map"].data() == report.plots["map"].data()
    again = loaded.save(tmp_path / "again")
    for name in report.plots:
        assert loaded.plots[name].caption == report.plots[name].caption
        saved, once_more = (matplotlib.image.imread(f / f"{name}.png") for f in (folder, again))
        assert np.abs(saved - once_more).max() <= 1 / 255, name


def test_cards_and_dictionaries(pair):
    report, loaded, _ = pair
    assert loaded.cards == report.cards
    for name in ("W_enc", "b_enc", "W_dec", "b_pre", "b_out"):
        assert torch.equal(getattr(loaded.dictionaries["stitched"], name), getattr(build_dictionary("stitched"), name))
    assert loaded.dictionaries["stitched"].metadata == report.dictionaries["stitched"].metadata


def test_a_loaded_report_is_saved_with_all_it_had(pair, tmp_path):
    _, loaded, folder = pair
    twice = Report.load(loaded.save(tmp_path / "twice"))
    assert repr(twice) == repr(loaded) and twice.provenance() == loaded.provenance()
    assert {p.name for p in (tmp_path / "twice").iterdir()} == {p.name for p in folder.iterdir()}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "report.json").unlink(), "holds no report"),
        (lambda f: (f / "report.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "report.json").write_text('{"title": "t", "files": []}'), "run the analysis again"),
        (lambda f: (f / "pairs.parquet").unlink(), "damaged .*pairs.parquet"),
        (lambda f: (f / "pairs.parquet").write_bytes(b"no table"), "damaged"),
        (lambda f: (f / "stitched.safetensors").write_bytes(b"x"), "stitched.safetensors"),
        (
            lambda f: (f / "report.json").write_text(
                (f / "report.json").read_text().replace('"pairs": "All', '"../pairs": "All')
            ),
            "is no name of a file",
        ),
    ],
)
def test_what_is_no_report_or_damaged_is_named(pair, tmp_path, damage, message):
    folder = shutil.copytree(pair[2], tmp_path / "out")
    damage(folder)
    with pytest.raises(DictlabError, match=message):
        Report.load(folder)
