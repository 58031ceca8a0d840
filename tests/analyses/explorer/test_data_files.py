"""Data files: what goes in comes out, in JavaScript too, and nothing in them is anything but data."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyses.common.token_texts import token_pieces
from analyses.explorer.data_files import packed, packed_ids, packed_unit, read_data, unpacked, write_data
from analyses.explorer.page import SCRIPTS, page_html, script
from analyses.explorer.sample_texts import sequence_text, utf16_length
from tests.planted import tiny_tokenizer

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "'); alert(1); ('",
    "\\'\\\\'",
    "\u2028\u2029\x00\x1b[31m",
    "\u202eevil",
    "\ud800",
    "\udc80\udcff",
    "__proto__",
    "日本語 עברית 👩‍👩‍👧",
]
NODE = shutil.which("node")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(tmp_path, text):
    write_data(tmp_path, "one", {"text": text, text: [text]})
    content = (tmp_path / "one.js").read_bytes()
    assert content.isascii() and b"\n" not in content[:-1] and b"\x00" not in content
    assert read_data(tmp_path, "one") == {"text": text, text: [text]}


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_a_browsers_language_reads_the_same(tmp_path):
    """The scripts run as JavaScript: one call, whose second argument JSON.parse takes, and nothing else happens."""
    write_data(tmp_path, "all", HOSTILE)
    code = "globalThis.dictlabReceive = (name, text) => console.log(JSON.stringify([name, JSON.parse(text)]));"
    ran = subprocess.run(
        [NODE, "-e", code + (tmp_path / "all.js").read_text()], capture_output=True, text=True, check=True
    )
    assert json.loads(ran.stdout) == ["all", HOSTILE]


@pytest.mark.skipif(NODE is None, reason="needs node")
@pytest.mark.parametrize("text", HOSTILE)
def test_the_page_shows_what_reports_show(text):
    """The page's `visible` is Python's, character for character: no control or bidirectional character is left."""
    from analyses.common.token_texts import visible

    code = script().split("const tokenText")[0].split("// Text reaches")[1]
    ran = subprocess.run(
        [NODE, "-e", f"//{code};console.log(JSON.stringify(visible({json.dumps(text)})))"],
        capture_output=True,
        text=True,
        check=True,
    )
    shown = json.loads(ran.stdout)
    assert shown == visible(text)
    assert not re.search("[\x00-\x1f\u2028-\u202e\ud800-\udfff]", shown)


def test_the_page_is_one_script_that_makes_no_markup_from_text():
    """No way from text to markup or code, and nothing from elsewhere."""
    for forbidden in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "setHTML",
    ):
        assert forbidden not in script()
    whole = page_html('<b>"title"') + script()
    assert re.findall(r"https?://[^\"'` ]+", whole) == ["http://www.w3.org/2000/svg"]  # a name, not an address
    assert "<b>" not in page_html('<b>"title"') and "unsafe-inline" not in whole
    assert len(SCRIPTS) == len(set(SCRIPTS))


@given(st.lists(st.floats(-1, 1) | st.just(float("nan")), max_size=20))
def test_numbers_from_minus_one_to_one_keep_four_digits(values):
    found = unpacked(packed_unit(np.array(values)))
    assert found == pytest.approx(np.array(values), abs=1.6e-5, nan_ok=True)


@given(st.lists(st.integers(-1, 70_000), max_size=20))
def test_token_ids_come_back(ids):
    assert unpacked(packed_ids(np.array(ids, dtype=np.int64))).tolist() == ids


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint8])
def test_arrays_come_back(dtype):
    values = np.arange(7).astype(dtype)
    assert unpacked(packed(values)).tolist() == values.tolist()


@given(st.lists(st.integers(0, 96), min_size=1, max_size=40))
def test_lengths_cut_the_text_into_its_tokens(ids):
    tokenizer = tiny_tokenizer()
    one = sequence_text(tokenizer, ids, {0})
    assert (
        one["text"]
        == "".join(token_pieces(tokenizer, ids))
        == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    )
    start, pieces = 0, []
    for length in one["lengths"]:
        pieces.append(one["text"][start : start + length])
        start += length
    assert pieces == token_pieces(tokenizer, ids) and start == len(one["text"])
    assert one["special"] == [p for p, token in enumerate(ids) if token == 0]


@pytest.mark.skipif(NODE is None, reason="needs node")
@pytest.mark.parametrize("text", HOSTILE)
def test_lengths_are_javascripts(text):
    ran = subprocess.run(
        [NODE, "-e", f"console.log({json.dumps(text)}.length)"], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) == utf16_length(text)
