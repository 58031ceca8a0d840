"""Latents' numbers on a report's page lead to their cards or into an explorer's folder, and nowhere else."""

import json
import re

import pandas as pd
import pytest

from dictlab import DictlabError, Metadata, TopK
from dictlab.dictionary.hashing import sha256_of_weights
from dictlab.reports.cards import Card, Cards
from dictlab.reports.latent_links import TITLES, LatentLinks
from dictlab.reports.report import Report, Table
from tests.planted import random_dictionary

NAMES = ("small", "large", "other")


@pytest.fixture(scope="module")
def dictionaries():
    return [
        random_dictionary(n, 4, activation=TopK(2), seed=n, name=name, metadata=Metadata())
        for name, n in zip(NAMES, (3, 5, 7), strict=True)
    ]


@pytest.fixture
def explorer(dictionaries, tmp_path):
    """The files that links are made from, of an explorer of LARGE and SMALL, in this order."""
    folder = tmp_path / "an explorer"
    folder.mkdir()
    shown = [dictionaries[1], dictionaries[0]]
    (folder / "index.html").write_text("")
    (folder / "report.json").write_text(
        json.dumps({"key": {"sha256_of_weights": [sha256_of_weights(d) for d in shown]}})
    )
    rows = [(d.name, i, f"context of {d.name} {i}\n«<b>»") for d in shown for i in range(d.n_latents)]
    pd.DataFrame(rows, columns=["dictionary", "latent", "contexts"]).to_parquet(folder / "latents.parquet")
    return folder


def report_of(dictionaries, cards=()):
    frame = pd.DataFrame(
        {"of": ["small", "large", "other", "large"], "latent": [2, 4, 1, None], "count": [2, 4, 1, 3]}
    ).astype({"latent": "Int64"})
    tables = {"pairs": Table(frame, "c", named_in={"latent": "of"})}
    return Report("t", "s", tables, cards={"what": Cards(cards, "c")} if cards else {}, inputs=tuple(dictionaries))


def links(page):
    return re.findall(r'<td[^>]*><a href="([^"]*)"[^>]*>([^<]*)</a>', page)


def test_numbers_lead_into_the_explorer(dictionaries, explorer, tmp_path):
    folder = report_of(dictionaries).save(tmp_path / "report", explorer=explorer)
    page = (folder / "report.html").read_text()
    base = "../an%20explorer/index.html#view=latent&amp;d="
    assert links(page) == [(f"{base}1&amp;i=2", "2"), (f"{base}0&amp;i=4", "4")]  # `other` is not in it
    assert (folder / "../an explorer/index.html").exists()
    assert "context of small 2\n«&lt;b&gt;»" in page and "context of large 4" in page and "<b>" not in page
    data = json.loads(re.search(r'class="links">(.*?)</script>', page)[1])
    assert data["1"]["of"] == [0, 1, -1, -1] and set(data) == {"1"}
    assert all(
        address.endswith((f"d=1&i={2}", f"d=0&i={4}"))
        for address in json.loads(re.search(r'id="contexts">(.*?)</script>', page)[1])
    )


def test_without_an_explorer_numbers_lead_to_their_cards(dictionaries):
    cards = (Card("Latent 4", latent=("large", 4)), Card("something else"), Card("Latent 4", latent=("small", 4)))
    page = report_of(dictionaries, cards).html()
    ((address, text),) = links(page)
    assert text == "4" and f'id="{address[1:]}"' in page
    assert page.index(f'id="{address[1:]}"') < page.index("something else")
    assert "<a href" not in report_of(dictionaries).html()


def test_a_folder_without_an_explorer_is_refused_and_other_dictionaries_are_said(dictionaries, explorer, tmp_path):
    with pytest.raises(DictlabError, match="no explorer's folder"):
        report_of(dictionaries).save(tmp_path / "report", explorer=tmp_path)
    assert not (tmp_path / "report").exists()
    pd.DataFrame({"latent": [0]}).to_parquet(tmp_path / "latents.parquet")  # as an earlier version wrote it
    for name in ("index.html", "report.json"):
        (tmp_path / name).write_text((explorer / name).read_text())
    with pytest.raises(DictlabError, match="of an earlier version"):
        report_of(dictionaries).save(tmp_path / "report", explorer=tmp_path)
    folder = report_of(dictionaries[2:]).save(tmp_path / "report", explorer=explorer)
    assert "holds none of these dictionaries" in (folder / "report.html").read_text()


def test_contexts_of_a_long_table_are_bounded():
    n = TITLES + 10
    found = LatentLinks({"d": "x&i="}, contexts={"d": ["text"] * n})
    column = found.column(list(range(n)), ["d"] * n)
    assert len(found.titles) == TITLES
    assert column.address(n - 1, str(n - 1)) == f"x&i={n - 1}" and column.address(0, "–") is None


def test_a_loaded_report_has_the_same_links(dictionaries, explorer, tmp_path):
    cards = (Card("Latent 4", latent=("large", 4)), Card("something else"))
    report_of(dictionaries, cards).save(tmp_path / "report", explorer=explorer)
    again = Report.load(tmp_path / "report")
    assert links(again.html()) == links(report_of(dictionaries, cards).html()) != []
    again.save(tmp_path / "again", explorer=explorer)
    pages = [links((tmp_path / name / "report.html").read_text()) for name in ("report", "again")]
    assert pages[0] == pages[1] and len(pages[0]) == 2
