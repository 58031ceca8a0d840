"""A report's folder holds everything it says, whole or not at all, and nothing in it runs in a browser."""

import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from dictlab import Dictionary, DictlabError, Metadata, Report, TopK, load
from dictlab.reports.cards import template
from dictlab.reports.page import EMBEDDED_CELLS, SHOWN_ROWS
from dictlab.reports.report import Plot, Scatter, Table, check_folder
from dictlab.reports.safe_text import safe
from tests.planted import random_dictionary


def build_dictionary(name: str = "small", seed: int = 0, **changes) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (3, 5), "b_enc": (5,), "W_dec": (5, 3), "b_pre": (3,), "b_out": (3,)}
    weights = {key: torch.randn(*shape, generator=generator) for key, shape in shapes.items()}
    return Dictionary(
        **(weights | changes),
        activation=TopK(2),
        name=name,
        metadata=Metadata(model="gpt2", model_fingerprint="abc", site="blocks.0.hook_resid_pre"),
    )


def build_plot(label: str = "cosine") -> Plot:
    figure = Figure(figsize=(3, 2), layout="constrained")
    ax = figure.subplots()
    ax.plot([1, 2, 4], label=label)
    ax.set(xlabel=label, title="A title over the axes")
    ax.legend()
    return Plot(figure, f"A line of {label}.")


FRAME = pd.DataFrame(
    {
        "name": ["a", "b, with a comma", 'c "quoted"', "d\nline"],
        "value": [0.1, float("nan"), 1e-17, -3.25],
        "count": [1, 2, 3, 2**40],
        "alive": [True, False, True, True],
    }
)
LONG = pd.DataFrame({"x": np.arange(SHOWN_ROWS + 7), "y": np.linspace(0, 1, SHOWN_ROWS + 7)})


def build_report(**changes) -> Report:
    parts = {
        "title": "What differs?",
        "summary": "Little.",
        "tables": {"pairs": Table(FRAME, "All pairs."), "long": Table(LONG, "Many rows.")},
        "plots": {"line": build_plot(), "other": build_plot("width")},
        "dictionaries": {"stitched": build_dictionary("stitched")},
        "settings": {"seed": 3, "top": (1, 2)},
        "inputs": (build_dictionary("small"), build_dictionary("large", 1)),
        "warnings": ("It is worse.",),
    }
    return Report(**(parts | changes))


FILES = {
    *(f"{table}.{ending}" for table in ("pairs", "long") for ending in ("csv", "parquet")),
    *(f"{plot}.{ending}" for plot in ("line", "other") for ending in ("png", "svg")),
    *("stitched.safetensors", "report.html", "report.json"),
}


def contents(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return build_report().save(tmp_path_factory.mktemp("report") / "out", command="dictlab report pairs 'a b'")


# What the folder holds


def test_the_folder_holds_every_table_plot_and_dictionary_the_page_and_the_record(saved):
    assert {path.name for path in saved.iterdir()} == FILES


@pytest.mark.parametrize(("name", "frame"), [("pairs", FRAME), ("long", LONG)])
def test_csv_and_parquet_hold_the_whole_table(saved, name, frame):
    read = {"csv": pd.read_csv(saved / f"{name}.csv"), "parquet": pd.read_parquet(saved / f"{name}.parquet")}
    for one in read.values():
        pd.testing.assert_frame_equal(one, frame, check_exact=True)
    pd.testing.assert_frame_equal(read["csv"], read["parquet"], check_exact=True)


def test_figures_are_pictures_in_both_formats(saved):
    for name in ("line", "other"):
        assert (saved / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
        assert "</svg>" in (saved / f"{name}.svg").read_text()
    assert "width" in (saved / "other.svg").read_text(), "text stays text"


def test_the_dictionary_can_be_loaded(saved):
    assert torch.equal(load(saved / "stitched.safetensors").W_dec, build_dictionary().W_dec)


class Tags(HTMLParser):
    """Every tag with its attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_from_outside(saved):
    page = (saved / "report.html").read_text(encoding="utf-8")
    sources = [
        value for _, attributes in Tags(page).tags for name, value in attributes.items() if name in ("src", "href")
    ]
    pictures = [source for source in sources if not source.startswith("#")]
    assert len(pictures) == 2 and all(source.startswith("data:image/png;base64,") for source in pictures)
    assert not re.search(r"https?://|url\(|@import", page)
    assert not {"link", "iframe"} & {tag for tag, _ in Tags(page).tags}


def test_contents_lead_to_the_parts_of_the_page(saved):
    tags = Tags((saved / "report.html").read_text(encoding="utf-8")).tags
    targets = {a["href"].removeprefix("#") for tag, a in tags if tag == "a"}
    assert targets == {"plot-line", "plot-other", "table-pairs", "table-long"}
    assert targets <= {a["id"] for _, a in tags if "id" in a}


def test_the_page_tells_all_of_it(saved):
    text = Tags((saved / "report.html").read_text(encoding="utf-8")).text
    for needle in (
        "What differs?",
        "Little.",
        "It is worse.",
        "All pairs.",
        "b, with a comma",
        "1e-17",
        "A line of width.",
    ):
        assert needle in text
    assert "7 more rows in long.csv" in text
    assert "dictlab report pairs 'a b'" in text


def test_the_record_says_how_it_was_made(saved):
    record = json.loads((saved / "report.json").read_text(encoding="utf-8"))
    assert set(record["files"]) == FILES
    assert (record["title"], record["summary"], record["warnings"]) == ("What differs?", "Little.", ["It is worse."])
    made = record["provenance"]
    assert made["command"] == "dictlab report pairs 'a b'"
    assert made["settings"] == {"seed": 3, "top": [1, 2]}
    assert {"dictlab", "python", "torch", "transformers", "numpy", "time"} <= made.keys()
    assert made["torch"] == torch.__version__
    digest = hashlib.sha256()
    for name in ("W_enc", "b_enc", "W_dec", "b_pre", "b_out"):
        digest.update(getattr(build_dictionary(), name).numpy().tobytes())
    assert [one["name"] for one in made["inputs"]] == ["small", "large"]
    assert made["inputs"][0]["sha256_of_weights"] == digest.hexdigest() != made["inputs"][1]["sha256_of_weights"]
    assert made["inputs"][0]["site"] == "blocks.0.hook_resid_pre"


def test_the_record_is_json_whatever_the_settings_are(tmp_path):
    settings = {
        "a": float("nan"),
        "b": np.int64(3),
        "c": tmp_path,
        4: {"x": (1, np.float32(0.5))},
        "d": {"one"},
        "e": None,
    }
    folder = build_report(settings=settings).save(tmp_path / "out")

    def strict(constant):
        raise AssertionError(f"{constant} is no JSON")

    record = json.loads((folder / "report.json").read_text(), parse_constant=strict)
    expected = {"a": "nan", "b": 3, "c": str(tmp_path), "4": {"x": [1, 0.5]}, "d": ["one"], "e": None}
    assert record["provenance"]["settings"] == expected


def test_inputs_in_half_precision_are_hashed_too(tmp_path):
    half = build_dictionary().to(dtype=torch.bfloat16)
    made = build_report(inputs=(half, build_dictionary())).provenance()["inputs"]
    assert made[0]["sha256_of_weights"] != made[1]["sha256_of_weights"]


def test_a_report_of_nothing_but_a_sentence_is_a_report(tmp_path):
    folder = Report("Question", "Answer").save(tmp_path / "new" / "folders")
    assert {path.name for path in folder.iterdir()} == {"report.html", "report.json"}


def test_missing_values_of_every_kind_are_shown_as_a_dash():
    values = [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT]
    page = Report("t", "s", {"a": Table(pd.DataFrame({"x": pd.Series(values, dtype=object)}), "c")})._repr_html_()
    assert page.count("<td>–</td>") == len(values)


def test_saving_twice_gives_the_same_tables_and_figures(tmp_path):
    report = build_report()
    first, second, fresh = (
        contents(one.save(tmp_path / name)) for one, name in ((report, "a"), (report, "b"), (build_report(), "c"))
    )
    for name in FILES - {"report.html", "report.json"}:
        assert first[name] == second[name] == fresh[name], name


# Text from data is text


EVIL = "<script>alert(1)</script>"
HOSTILE = {
    "title": {"title": EVIL},
    "summary": {"summary": EVIL},
    "warning": {"warnings": (EVIL,)},
    "table caption": {"tables": {"t": Table(FRAME, EVIL)}},
    "plot caption": {"plots": {"p": Plot(build_plot().figure, EVIL + '" onerror="alert(1)')}},
    "cell": {"tables": {"t": Table(pd.DataFrame({"x": [EVIL]}), "c")}},
    "cell of an object": {"tables": {"t": Table(pd.DataFrame({"x": [[EVIL]]}), "c")}},
    "column": {"tables": {"t": Table(pd.DataFrame({EVIL: [1]}), "c")}},
    "settings": {"settings": {EVIL: EVIL}},
    "dictionary": {"inputs": (build_dictionary(EVIL),)},
}


@pytest.mark.parametrize("where", HOSTILE)
def test_text_from_data_is_escaped_on_the_page_and_in_the_notebook(where):
    report = build_report(**HOSTILE[where])
    for page in (report.html(command=EVIL), report._repr_html_()):
        parsed = Tags(page)
        assert foreign_scripts(page) == []
        assert not [a for _, attributes in parsed.tags for a in attributes if a.startswith("on")]
    assert EVIL in Tags(report.html()).text, "shown, not dropped"


def test_the_name_of_a_long_table_is_escaped():
    page = Report("t", "s", {EVIL: Table(LONG, "c")})._repr_html_()
    assert "script" not in {tag for tag, _ in Tags(page).tags} and EVIL in Tags(page).text


# A scatter, whose points say what they are


POINTS = pd.DataFrame(
    {
        "x": [0.0, 1.23456789, np.nan, 4],
        "y": [1.0, 2, 3, 1e-9],
        "dictionary": ["b", "a", "b", "a"],
        "latent": [3, 1, 4, 1],
        "region": ["1", None, "1, 2", None],
        "context": ["plain", "line\nbreak", None, "«z»"],
    }
)


def build_scatter(frame: pd.DataFrame = POINTS, **changes) -> Scatter:
    parts = {"x": "x", "y": "y", "group": "dictionary", "labels": ("latent", "context"), "marks": "region"}
    return Scatter(build_plot().figure, "Where they lie.", frame, **(parts | changes))


def foreign_scripts(page: str) -> list[str]:
    """Script elements that are neither data without markup nor a template of the package, word for word."""
    own = {template(name).render().strip() for name in ("tables.js", "scatter.js")}
    scripts = re.findall(r"<script([^>]*)>(.*?)</script", page, re.DOTALL | re.IGNORECASE)
    return [
        text
        for attributes, text in scripts
        if not (attributes == "" and text.strip() in own)
        and not (attributes == ' type="application/json"' and text.isascii() and not set("<>&") & set(text))
    ]


def embedded(page: str) -> list[dict]:
    """What a browser finds in the script elements that hold data."""
    return [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)]


def test_a_scatter_is_a_figure_with_its_points_beside_it(tmp_path):
    folder = build_report(plots={"map": build_scatter()}).save(tmp_path / "out")
    assert {"map.png", "map.svg", "map.csv", "map.parquet"} <= {path.name for path in folder.iterdir()}
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "map.parquet"), POINTS)
    assert len(pd.read_csv(folder / "map.csv")) == 4
    assert {"map.csv", "map.parquet"} <= set(json.loads((folder / "report.json").read_text())["files"])


def test_the_page_holds_the_points_of_a_scatter_by_column():
    plots = {"map": build_scatter(colours={"a": "#000"}), "line": build_plot()}
    (data,) = embedded(build_report(plots=plots, tables={}).html())
    assert data["x"] == [0, 1.2346, None, 4] and data["y"] == [1, 2, 3, 1e-9]
    assert data["groups"] == ["a", "b"] and data["group"] == [1, 0, 1, 0] and data["colours"] == ["#000", None]
    assert data["labels"] == {"latent": ["3", "1", "4", "1"], "context": ["plain", "line\nbreak", None, "«z»"]}
    assert data["marks"] == ["1", None, "1, 2", None]


def test_a_scatter_on_the_page_keeps_labels_and_thresholds():
    figure = Figure()
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1])
    ax.axvline(0.7)
    ax.axhline(-2.0)
    ax.set(xlabel="cosine", ylabel="nats\x1b")
    (data,) = embedded(Report("t", "s", plots={"map": replace(build_scatter(), figure=figure)}).html())
    assert (data["xlabel"], data["ylabel"]) == ("cosine", "nats\\x1b")
    assert (data["vertical"], data["horizontal"]) == ([0.7], [-2.0])


def test_the_page_of_a_scatter_needs_nothing_from_outside():
    page = build_report(plots={"map": build_scatter()}).html()
    assert not re.search(r"https?://|url\(|@import|\bimport\b", page)
    assert not [a for tag, a in Tags(page).tags if tag == "script" and "src" in a]
    assert "innerHTML" not in page and "eval(" not in page


def test_a_notebook_shows_the_figure_of_a_scatter_without_a_script():
    for shown in (build_report(plots={"map": build_scatter()})._repr_html_(), build_scatter()._repr_html_()):
        assert "<script" not in shown and "data:image/png" in shown


WICKED = [
    "</script><b>bold</b>",
    "</ScRiPt ><img src=x onerror=alert(1)>",
    "<!-- <script>",
    "-->",
    "]]>",
    "\u2028 and \u2029",
    'quote " and \\ backslash \\u003c',
    "&lt;/script&gt;",
    "\x00 \x1b",
]


@pytest.mark.parametrize("text", WICKED)
def test_no_text_of_a_point_gets_out_of_the_data(text):
    frame = pd.DataFrame({"x": [1.0], "y": [2.0], "dictionary": [text], text: [text], "region": [text]})
    scatter = build_scatter(frame, labels=(text,), colours={text: text})
    page = Report("t", "s", plots={"map": scatter}).html()
    (data,) = embedded(page)
    assert data["groups"] == data["marks"] == data["labels"][safe(text)] == [safe(text)]
    assert data["colours"] == [text], "a colour is no text that is shown"
    inside = page.split('<script type="application/json">')[1].split("</script>")[0]
    assert inside.isascii() and not set("<>&") & set(inside)
    tags = [tag for tag, _ in Tags(page).tags]
    assert tags.count("script") == 2 and "b" not in tags and tags.count("img") == 1


@pytest.mark.parametrize("text", WICKED)
def test_no_text_of_a_table_gets_out_of_the_data(text):
    page = Report("t", "s", {"a": Table(pd.DataFrame({text: [text, text]}), "c")}).html()
    assert embedded(page) == [[[safe(text)], [safe(text)]]]
    assert foreign_scripts(page) == []
    assert "b" not in [tag for tag, _ in Tags(page).tags]


def test_the_page_holds_all_rows_of_a_table_as_they_are_shown():
    (rows,) = embedded(Report("t", "s", {"long": Table(LONG, "c")}).html())
    assert rows == [[str(x), f"{y:.4g}"] for x, y in zip(LONG["x"], LONG["y"], strict=True)]


def test_a_table_that_is_too_large_for_the_page_is_in_its_files_alone():
    frame = pd.DataFrame({"x": np.arange(EMBEDDED_CELLS + 1)})
    page = Report("t", "s", {"huge": Table(frame, "c")}).html()
    assert embedded(page) == [] and f"{len(frame) - SHOWN_ROWS} more rows in huge.csv" in page


def test_a_report_gives_its_tables_by_name_and_prints_in_few_lines():
    report = build_report()
    assert report["pairs"] is FRAME
    with pytest.raises(KeyError, match="pairs, long"):
        report["pears"]
    assert "pairs (4 x 4), long (27 x 2)" in repr(report) and len(repr(report)) < 400


def test_a_table_and_a_scatter_of_one_name_are_refused():
    with pytest.raises(ValueError, match="both called 'map'"):
        build_report(plots={"map": build_scatter()}, tables={"map": Table(FRAME, "c")})


# What stands in the folder already


def test_a_folder_that_holds_a_report_is_refused_and_untouched(tmp_path):
    folder = build_report().save(tmp_path / "out")
    before = contents(folder)
    with pytest.raises(DictlabError, match=r"out: already holds a report.*force=True"):
        build_report(title="Another").save(folder)
    assert contents(folder) == before
    with pytest.raises(DictlabError, match="already holds a report"):
        check_folder(folder, force=False)


def test_force_replaces_the_old_report_with_all_its_files_and_leaves_a_strangers(tmp_path):
    folder = build_report().save(tmp_path / "out")
    (folder / "notes.txt").write_text("mine")
    (folder / "sub").mkdir()
    (folder / "sub" / "pairs.csv").write_text("mine too")
    Report("Another", "Short.", {"only": Table(FRAME, "c")}).save(folder, force=True)
    assert set(contents(folder)) == {
        "only.csv", "only.parquet", "report.html", "report.json", "notes.txt", "sub/pairs.csv",
    }  # fmt: skip
    assert (folder / "notes.txt").read_text() == "mine"
    assert json.loads((folder / "report.json").read_text())["title"] == "Another"


def test_the_list_of_an_old_report_reaches_no_file_elsewhere(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "precious.txt").write_text("mine")
    names = ["../precious.txt", str(tmp_path / "precious.txt"), "..", "", 3]
    (folder / "report.json").write_text(json.dumps({"files": names}))
    build_report().save(folder, force=True)
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"files": 3}', '{"files": [null]}'])
def test_force_replaces_a_damaged_report_too(tmp_path, damage):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "report.json").write_text(damage)
    with pytest.raises(DictlabError, match="already holds a report"):
        Report("t", "s").save(folder)
    Report("t", "s").save(folder, force=True)
    assert json.loads((folder / "report.json").read_text())["title"] == "t"


def test_a_file_that_no_report_wrote_is_not_overwritten(tmp_path):
    (tmp_path / "stitched.safetensors").write_bytes(b"mine")
    with pytest.raises(DictlabError, match=r"stitched\.safetensors, which no report wrote"):
        build_report().save(tmp_path)
    assert contents(tmp_path) == {"stitched.safetensors": b"mine"}
    build_report().save(tmp_path, force=True)
    assert set(contents(tmp_path)) == FILES


def test_a_path_that_is_a_file_or_below_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        for action in (lambda p: build_report().save(p, force=True), lambda p: check_folder(p, force=False)):
            with pytest.raises(DictlabError, match="file: this is a file"):
                action(path)
    assert contents(tmp_path) == {"file": b"mine"}


# Whole or not at all


@pytest.fixture
def unwritable(monkeypatch) -> pd.DataFrame:
    """A table whose Parquet cannot be written."""
    original = pd.DataFrame.to_parquet

    def to_parquet(frame, *args, **kwargs):
        if "unwritable" in frame.columns:
            raise RuntimeError("no space left")
        return original(frame, *args, **kwargs)

    monkeypatch.setattr(pd.DataFrame, "to_parquet", to_parquet)
    return pd.DataFrame({"unwritable": [1]})


def test_a_report_that_cannot_be_written_leaves_no_trace(tmp_path, unwritable):
    broken = build_report(tables={"good": Table(FRAME, "c"), "zbad": Table(unwritable, "c")})
    with pytest.raises(RuntimeError, match="no space left"):
        broken.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_that_cannot_be_written_leaves_the_old_one_whole(tmp_path, unwritable):
    folder = build_report().save(tmp_path / "out")
    before = contents(folder)
    with pytest.raises(RuntimeError, match="no space left"):
        build_report(tables={"zbad": Table(unwritable, "c")}).save(folder, force=True)
    assert contents(folder) == before
    assert not [path for path in folder.iterdir() if path.is_dir()]


def test_what_reading_a_dictionary_brought_to_light_stands_beside_the_warnings(tmp_path):
    noted = replace(random_dictionary(name="mine"), metadata=Metadata(notes=("codes depend on the <batch>.",)))
    report = Report("Title", "Summary.", inputs=(noted,), warnings=("Mind the gap.",))
    assert report.cautions == ("Mind the gap.", "mine: codes depend on the <batch>.")
    saved = report.save(tmp_path / "out")
    page = (saved / "report.html").read_text()
    assert "mine: codes depend on the &lt;batch&gt;." in page and "<batch>" not in page
    assert json.loads((saved / "report.json").read_text())["warnings"] == list(report.cautions)
    assert "codes depend" in str(report)
