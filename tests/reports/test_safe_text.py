"""What could steer a terminal, break an SVG or run as a formula is shown as text."""

import csv
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pandas as pd
import pytest
from matplotlib.figure import Figure

from dictlab.cli.printing import print_report
from dictlab.reports.cards import Card, Cards, Passage, Piece
from dictlab.reports.report import Plot, Report, Scatter, Table
from dictlab.reports.safe_text import safe

HOSTILE = "\x1b[31mred\x00 \u202egnp.exe\u2066 \x9b2J \ufeff"
UNSAFE = [*"\x1b\x00\u202e\u2066\x9b\ufeff"]


def report() -> Report:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], label=HOSTILE)
    axes.set_title(HOSTILE)
    axes.legend()
    frame = pd.DataFrame({"name": [HOSTILE, "plain"], "x": [1.0, 2.0], HOSTILE: ["a", "b"]})
    cards = Cards((Card(HOSTILE, {HOSTILE: HOSTILE}, {"top": (Passage((Piece(HOSTILE, 1.0),), 0),)}),), HOSTILE)
    points = Scatter(figure, HOSTILE, frame, x="x", y="x", group="name", labels=("name",))
    return Report(
        HOSTILE, HOSTILE, {"table": Table(frame, HOSTILE)}, {"plot": Plot(figure, HOSTILE), "points": points},
        {"deck": cards}, warnings=(HOSTILE,), settings={"name": HOSTILE},
    )  # fmt: skip


def test_codes_stand_for_what_is_unsafe():
    assert (
        safe("a\x1b[0m\u202e\x00\n\tb é 日本 \U0001f469\u200d\U0001f4bb")
        == "a\\x1b[0m\\u202e\\x00\n\tb é 日本 \U0001f469\u200d\U0001f4bb"
    )


def test_pages_figures_and_the_terminal(tmp_path, capsys):
    report().save(tmp_path / "out")
    print_report(report(), tmp_path / "out")
    shown = capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    figure = (tmp_path / "out" / "plot.svg").read_text("utf-8")
    notebook = report()._repr_html_() + next(iter(report().tables.values()))._repr_html_() + str(report())
    for text in (shown, page, figure, notebook):
        assert not [character for character in UNSAFE if character in text]
    assert "\\x1b[31mred\\x00 \\u202egnp" in shown and "\\x1b[31mred\\x00 \\u202egnp" in page
    ElementTree.fromstring(figure)
    json.loads((tmp_path / "out" / "report.json").read_text("ascii"))


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "\t=1"])
def test_csv_cells_are_no_formulas(tmp_path, text):
    frame = pd.DataFrame({"name": [text, "-1.5e3", "+2", "-", "plain"], "value": [-1.5, 2, 3, 4, 5], text: [1] * 5})
    Report("t", "s", {"table": Table(frame, "")}).save(tmp_path / "out")
    header, *rows = csv.reader((tmp_path / "out" / "table.csv").open())
    assert header == ["name", "value", f"'{text}"]
    assert [row[0] for row in rows] == [f"'{text}", "-1.5e3", "+2", "'-", "plain"]
    assert [float(row[1]) for row in rows] == [-1.5, 2, 3, 4, 5]
    assert pd.read_parquet(tmp_path / "out" / "table.parquet")["name"][0] == text  # data stays as it is


def test_half_of_a_surrogate_pair_is_a_code_in_every_file(tmp_path, capsys):
    """Names of files that are not UTF-8, and pieces of emoji, reach Python as such; pandas' own texts refuse them."""
    half, title = "a\ud83d", "\udce9t\udce9"
    frame = pd.DataFrame({"name": pd.Series([half, "b"], dtype=object), "x": [1.0, 2.0]})
    cards = {"deck": Cards((Card(half, {half: half}),), half)}
    made = Report(title, half, {"table": Table(frame, half)}, cards=cards, settings={"path": title})
    made.save(out := tmp_path / "out")
    rows = list(csv.reader((out / "table.csv").open(encoding="utf-8")))
    assert rows[1] == ["a\\ud83d", "1.0"]
    assert pd.read_parquet(out / "table.parquet")["name"][0] == "a\\ud83d"
    assert "\\udce9t\\udce9" in (out / "report.html").read_text("utf-8")
    assert json.loads((out / "report.json").read_text("utf-8"))["title"] == title
    print_report(made, out)
    assert "\\udce9t\\udce9" in capsys.readouterr().out


def test_a_report_of_plain_text_is_unchanged():
    plain = replace(report(), title="A title", summary="é 日本 <b>")
    assert "é 日本 &lt;b&gt;" in plain.html()
