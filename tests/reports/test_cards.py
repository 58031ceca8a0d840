"""Cards show all that is on them, as text."""

import json

import pandas as pd
import pytest

from dictlab import Report
from dictlab.reports.cards import Card, Cards, Passage, Piece
from dictlab.reports.report import Table
from tests.reports.test_report import Tags

EVIL = '<script>alert(1)</script>" onclick="alert(1)'


def build(text: str = "one") -> Cards:
    passage = Passage((Piece(f"{text} "), Piece("peak", 1.0), Piece(" rest", 0.25)), peak=1)
    card = Card(f"Latent {text}", {text: f"value {text}"}, {f"where {text}": (passage, Passage((Piece("plain"),)))})
    return Cards((card, Card("Empty")), f"Caption {text}.")


def test_a_passage_reads_as_text_with_its_peak_marked():
    passages = build().cards[0].passages["where one"]
    assert [str(p) for p in passages] == ["one «peak» rest", "plain"]


def test_cards_stand_on_the_page_and_in_the_notebook():
    cards = build()
    report = Report("t", "s", cards={"latents": cards})
    for page in (report.html(), report._repr_html_(), cards._repr_html_()):
        text = Tags(page).text
        assert all(
            shown in text
            for shown in ("Latent one", "value one", "where one", "one peak rest", "Caption one.", "Empty")
        )


def test_weights_and_the_peak_can_be_seen():
    styles = [a.get("style", "") for tag, a in Tags(build().html()).tags if tag == "span"]
    shaded = [style for style in styles if "rgba" in style]
    assert [("1.00)" in s, "bold" in s) for s in shaded[:3]] == [(False, False), (True, True), (False, False)]
    assert "0.25)" in shaded[2]


@pytest.mark.parametrize("text", [EVIL, "<b>bold</b>", "&lt;", "{{ 7 * 7 }}", "</div></div>", "\x00"])
def test_whatever_stands_on_a_card_is_text(text):
    report = Report("t", "s", cards={"latents": build(text)})
    for page in (report.html(), report._repr_html_()):
        parsed, plain = Tags(page), Tags(Report("t", "s", cards={"latents": build()}).html())
        assert {tag for tag, _ in parsed.tags} <= {tag for tag, _ in plain.tags}
        assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert text.replace("\x00", "") in Tags(report.html()).text.replace("\ufffd", "").replace("\x00", "")


def test_cards_are_saved_as_json_beside_a_table_of_the_same_name(tmp_path):
    table = Table(pd.DataFrame({"latent": [1]}), "c")
    folder = Report("t", "s", {"latents": table}, cards={"latents": build(EVIL)}).save(tmp_path / "out")
    assert {"latents.csv", "latents.json"} <= set(json.loads((folder / "report.json").read_text())["files"])
    read = json.loads((folder / "latents.json").read_text())
    ((passage, _),) = read["cards"][0]["passages"].values()
    assert read["caption"] == f"Caption {EVIL}." and read["cards"][0]["fields"] == {EVIL: f"value {EVIL}"}
    assert passage == {
        "text": f"{EVIL} «peak» rest",
        "pieces": [[f"{EVIL} ", 0], ["peak", 1], [" rest", 0.25]],
        "peak": 1,
    }


def test_a_report_saved_over_another_takes_its_cards_away(tmp_path):
    folder = Report("t", "s", cards={"latents": build()}).save(tmp_path / "out")
    Report("t", "s").save(folder, force=True)
    assert not (folder / "latents.json").exists()


def test_cards_that_would_take_the_records_place_are_refused():
    with pytest.raises(ValueError, match="'report'"):
        Report("t", "s", cards={"report": build()})
