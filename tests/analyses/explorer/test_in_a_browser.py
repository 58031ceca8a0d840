"""The page in a real browser, from disk and from the server, with hostile texts: `make browser` installs what it needs."""

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analyses.common.inputs import open_inputs
from analyses.explorer.data_files import packed, packed_ids, packed_unit, read_data, unpacked, write_data
from analyses.explorer.explore import explore
from analyses.explorer.live_model import LiveModel
from analyses.explorer.server import ExplorerServer
from dictlab import Metadata, Report, TopK
from dictlab.reports.report import Table
from tests.planted import SITE, random_dictionary, tiny_model

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make browser")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs chromium: make browser", allow_module_level=True)

CONTEXT = 16
HOSTILE = (
    "<img src=x onerror=\"document.title='run'\"></script><script>document.title='run'</script>\u202e\x1b\ud800'\""
)
PICTURES = os.environ.get("DICTLAB_PICTURES")  # a folder, where pictures of the shipped dictionaries are wanted


@pytest.fixture(scope="module")
def live(text):
    about = Metadata(site=SITE, training={"context": CONTEXT})
    dictionaries = [
        random_dictionary(n, 16, activation=TopK(4), seed=n, name=f"d-{n}", metadata=about) for n in (24, 40)
    ]
    return LiveModel(open_inputs(dictionaries, model=tiny_model(), text=text))


@pytest.fixture(scope="module")
def folder(live, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("browser") / "page"
    explore(live.inputs.dictionaries, model=live.model, text=text, tokens=32 * CONTEXT, umap=False, out=out)
    return out


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """A page that notes errors, dialogs, and requests that leave the disk and this machine."""
    page = browser.new_page(viewport={"width": 1280, "height": 850}, accept_downloads=True)
    page.troubles = []
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on("console", lambda message: message.type == "error" and page.troubles.append(message.text))
    page.on("dialog", lambda dialog: page.troubles.append(dialog.message) or dialog.dismiss())
    page.on(
        "request",
        lambda request: (
            request.url.startswith(("file:", "http://127.0.0.1:", "blob:")) or page.troubles.append(request.url)
        ),
    )
    yield page
    assert page.troubles == []
    page.close()


def opened(page, folder, state=""):
    page.goto(f"file://{folder}/index.html{state}")
    page.wait_for_selector("main > :not(.loading)")
    return page


def test_from_the_question_to_two_latents_side_by_side(page, folder):
    opened(page, folder)
    page.click("text=Novel latents of 40, which 24 lacks")
    page.wait_for_selector(".rows .row a")
    rows = read_data(folder / "data", "meta")["dictionaries"][1]["classes"]["0"]
    assert f"{rows[2]} latents of 40, novel to 24" in page.inner_text(".count")
    page.click(".rows .row a >> nth=0")
    page.wait_for_selector(".contexts .context")
    assert "novel" in page.inner_text("dl")
    before = page.inner_text("h1")
    page.keyboard.press("j")
    playwright.expect(page.locator("main h1")).not_to_have_text(before)
    page.click("text=side by side >> nth=0")
    page.wait_for_selector(".both .context")
    assert page.locator(".both .context >> nth=0").locator(".line").count() == 2
    page.go_back()
    page.wait_for_selector(".contexts .context")


def test_an_address_shows_the_same_view_again(page, folder):
    for state in (
        "#view=latent&d=1&i=3",
        "#view=splits&d=0&e=1&t=0.2",
        "#view=triggers&d=0&e=1&t=0.1",
        "#view=absorbed&d=0&e=1&t=0.1",
        "#view=token&i=2&j=3",
        "#view=pair&d=0&i=1&e=1&j=2",
        "#view=lanes",
        "#view=map",
    ):
        first = opened(page, folder, state).inner_text("main h1")
        page.reload()
        page.wait_for_selector("main h1")
        assert page.inner_text("main h1") == first and not page.locator("main .warning").count()


def test_search_by_number_token_and_string(page, folder):
    opened(page, folder, "#view=list")
    token = read_data(folder / "data", "vocabulary")["texts"][5]
    page.keyboard.press("/")
    page.keyboard.type("7")
    page.wait_for_selector("#suggestions li")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector(".contexts, main p")
    assert page.inner_text("h1").endswith("latent 7")
    page.fill("#search", f"on:{token}")
    page.press("#search", "Enter")
    page.wait_for_selector(".count")
    index = explorer_tokens(folder)
    assert page.inner_text(".count").split()[0] == str(
        sum(any(token.lower() in t.lower() for t in row) for row in index)
    )
    sequence = read_data(folder / "data", "text-0")[0]["text"]
    page.fill("#search", f"text:{sequence[2:5]}")
    page.press("#search", "Enter")
    page.wait_for_selector(".row a")
    assert "places" in page.inner_text(".count")


def explorer_tokens(folder):
    vocabulary = read_data(folder / "data", "vocabulary")
    texts = dict(zip(vocabulary["ids"], vocabulary["texts"], strict=True))
    rows = []
    for d in (0, 1):
        on = unpacked(read_data(folder / "data", f"index-{d}")["on"]).reshape(-1, 4)
        rows += [[texts[t] for t in row if t >= 0] for row in on.tolist()]
    return rows


def test_keys_alone_reach_a_latent(page, folder):
    opened(page, folder, "#view=list")
    page.focus(".scroller")
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.closest('.row').dataset.k") == "2"
    page.keyboard.press("Enter")
    page.wait_for_selector(".title h1")
    page.keyboard.press("Escape")
    page.wait_for_selector(".row a")


def test_a_list_is_taken_away_and_a_context_lengthened(page, folder):
    opened(page, folder, "#view=list&of=1&where=class0%3Dnovel&sort=effect0")
    with page.expect_download() as download:
        page.click("text=CSV")
    lines = Path(download.value.path()).read_text().splitlines()
    assert len(lines) - 1 == int(page.inner_text(".count").split()[0])
    page.click(".rows .row a >> nth=0")
    page.wait_for_selector(".context .more")
    short = page.inner_text(".context >> nth=0")
    page.click(".context .more >> nth=0")
    assert len(page.inner_text(".context >> nth=0")) >= len(short)
    page.fill(".notes textarea", HOSTILE.replace("\ud800", ""))
    page.reload()
    page.wait_for_selector(".notes textarea")
    assert page.input_value(".notes textarea").startswith("<img")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_narrow_and_dark_pages_fit(browser, folder, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    for state in (
        "",
        "#view=list",
        "#view=latent&d=1&i=3",
        "#view=splits",
        "#view=absorbed&t=0",
        "#view=lanes",
        "#view=map",
    ):
        opened(page, folder, state)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth + 1")
    page.close()


def test_nothing_from_data_is_run(page, folder, tmp_path):
    """Hostile names, tokens and texts in every data file: they are seen, and nothing happens."""
    hostile = tmp_path / "page"
    shutil.copytree(folder, hostile)
    data = hostile / "data"
    meta = read_data(data, "meta")
    for about in meta["dictionaries"]:
        about["name"] = f"{about['name']} {HOSTILE}"
    meta |= {"model": HOSTILE, "text": HOSTILE, "selection": HOSTILE, "warnings": [HOSTILE], "labels": 1}
    write_data(data, "meta", meta)
    vocabulary = read_data(data, "vocabulary")
    write_data(data, "vocabulary", {"ids": vocabulary["ids"], "texts": [HOSTILE for _ in vocabulary["ids"]]})
    write_data(data, "labels", [[0, 1, HOSTILE, HOSTILE]])
    for path in data.glob("text-*.js"):
        texts = read_data(data, path.stem)
        for one in texts:
            one["text"] = HOSTILE + one["text"]
            one["lengths"][0] += len(HOSTILE)
        write_data(data, path.stem, texts)
    views = (
        "",
        "#view=list",
        "#view=latent&d=0&i=1",
        "#view=latent&d=1&i=3",
        "#view=splits&t=0.1",
        "#view=triggers&t=0.1",
        "#view=absorbed&t=0.1",
        "#view=token&i=0&j=2",
        "#view=pair&d=0&i=1&e=1&j=3",
        "#view=lanes",
        "#view=map",
    )
    for state in (*views, f"#view=list&q={HOSTILE[:20]}", "#view=constructor", "#view=latent&d=99&i=-1"):
        page.goto("about:blank")
        opened(page, hostile, state)
        assert page.title() != "run" and page.locator("main img, main script").count() == 0
    assert "<img src=x" in opened(page, hostile).inner_text("main")


# What is compared of each view's CSV with the frame that its lines of Python give: columns of either.
KEYS = {"latent": "latent", "other latent": "other latent"}
TAKEN = {
    "#view=list&of=1&where=class0%3Dnovel&sort=effect0": "latent",
    "#view=list&q=3": "latent",
    "#view=splits&d=0&e=1&t=0.2": {"other latent": "latent", "latent": "nearest in d-24"},
    "#view=triggers&d=0&e=1&t=0.1": KEYS,
    "#view=triggers&d=1&e=0&t=0.1": KEYS,
    "#view=absorbed&d=0&e=1&t=0.3": {"latent": "latent", "absorbing latent": "other latent"},
    "#view=absorbed&d=1&e=0&t=0.3": {"latent": "latent", "absorbing latent": "other latent"},
    "#view=lanes&d=0&i=2&t=0.1": "latent",
    "#view=token&i=2&j=3": "latent",
    "#view=map": "latent",
    "#view=latent&d=1&i=3": {name: name for name in ("group", "sequence", "position")},
    "": {"latents": "latents"},
}
GROUPS = {"0": "top", "6": "random"} | {str(k): f"band {k} of 5" for k in range(1, 6)}


@pytest.mark.parametrize("state", TAKEN)
def test_python_gives_what_the_csv_holds(page, folder, state):
    """The lines that each view copies, run here, give the rows of its CSV, in its order but where ranks are equal."""
    page.add_init_script(
        "Object.defineProperty(navigator, 'clipboard', {value: {writeText: async t => { window.taken = t; }}})"
    )
    opened(page, folder, state)
    with page.expect_download() as download:
        page.click("text=CSV >> nth=0")
    page.click("text=copy as Python >> nth=0")
    playwright.expect(page.locator("button:text-is('copied') >> nth=0")).to_be_visible()
    names = {}
    exec(page.evaluate("window.taken"), names)
    frame, table = names["frame"], pd.read_csv(download.value.path(), dtype=str)
    columns = {TAKEN[state]: TAKEN[state]} if isinstance(TAKEN[state], str) else TAKEN[state]
    assert len(table) == len(frame) and (len(table) or "absorbed" in state)
    for own, of_frame in columns.items():
        shown = table[own].map(GROUPS) if own == "group" else table[own]
        assert sorted(shown) == sorted(frame[of_frame].astype(str))


def test_tokens_are_reached_by_keys_and_say_their_value(page, folder):
    opened(page, folder, "#view=latent&d=1&i=3")
    page.focus(".context .t[tabindex='0'] >> nth=0")
    assert page.is_visible("#tip") and "at token" in page.inner_text("#tip")
    before = page.evaluate("document.activeElement.dataset.place")
    page.keyboard.press("ArrowLeft")
    if page.evaluate("document.activeElement.dataset.place") == before:  # the first token of its text
        page.keyboard.press("ArrowRight")
    after = page.evaluate("document.activeElement.dataset.place")
    assert after != before
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Which latents are active here?")
    assert page.url.endswith("view=token&i={}&j={}".format(*after.split()))
    page.keyboard.press("?")
    page.wait_for_selector(".about .panel dl")


def test_every_view_is_reached_by_its_key(page, folder):
    opened(page, folder)
    for key, heading in (
        ("s", "that split in"),
        ("t", "with different triggers"),
        ("a", "absorbed in"),
        ("z", "From size to size"),
        ("m", "Map of decoder directions"),
        ("o", "Which latents does one dictionary have"),
    ):
        page.keyboard.press(key)
        page.wait_for_selector(f"main h1:has-text('{heading}')")


def test_a_region_of_the_map_is_listed(page, folder):
    opened(page, folder, "#view=map")
    page.click("text=list what is in view")
    page.wait_for_selector(".region a")
    whole = int(page.inner_text(".point p").split()[0])
    alive = sum(about["latents"] - about["dead"] for about in read_data(folder / "data", "meta")["dictionaries"])
    assert whole == alive
    page.evaluate("scrollTo(0, 0)")
    box = page.locator("canvas").bounding_box()
    page.keyboard.down("Shift")
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 2, steps=3)
    page.mouse.up()
    page.keyboard.up("Shift")
    playwright.expect(page.locator(".point p")).not_to_contain_text(f"{whole} latents")
    assert 0 < int(page.inner_text(".point p").split()[0]) < whole


def test_a_report_leads_into_the_explorer(page, folder, live, tmp_path):
    name = live.inputs.dictionaries[1].name
    table = Table(pd.DataFrame({"latent": range(30)}), "latents", {"latent": [name] * 30})
    report = Report("title", "summary", {"all": table}, inputs=tuple(live.inputs.dictionaries))
    made = report.save(tmp_path / "report", explorer=folder)
    page.goto(f"file://{made}/report.html")
    page.click("text=show all")  # rows that the page's script adds
    assert page.get_attribute("td a >> text='29'", "title")
    page.click("td a >> text='29'")
    page.wait_for_selector(".contexts .context, main p")
    assert page.inner_text("h1").endswith("latent 29")


def test_a_hundred_thousand_latents(page, folder, tmp_path):
    """The index of one dictionary drawn out; its last latent is found, sorted and opened."""
    n, large = 100_000, tmp_path / "page"
    shutil.copytree(folder, large)
    data = large / "data"
    meta, index = read_data(data, "meta"), read_data(data, "index-1")
    few = meta["dictionaries"][1]["latents"]
    meta["dictionaries"][1]["latents"] = n
    write_data(data, "meta", meta)
    rates = np.linspace(0, 0.5, n, dtype=np.float32)
    columns = {}
    for name, content in index.items():
        values = unpacked(content).reshape(few, -1)[np.arange(n) % few].ravel()
        pack = packed_unit if "unit16" in content else packed_ids if name in ("on", "up") else packed
        columns[name] = packed(rates) if name == "rate" else pack(values)
    write_data(data, "index-1", columns)
    size = meta["latents_a_file"]
    record = read_data(data, "latents-1-0")
    write_data(data, f"latents-1-{(n - 1) // size}", record)
    opened(page, large, "#view=list&of=1&sort=-rate")
    page.wait_for_selector(".rows .row a")
    assert "100,000 latents" in page.inner_text(".count") and page.locator(".rows .row").count() < 80
    assert page.inner_text(".rows .row a >> nth=0").endswith(str(n - 1))
    page.evaluate("document.querySelector('.scroller').scrollTop = 1e9")
    page.wait_for_selector(".rows .row >> text=/· 0$/")
    page.evaluate("document.querySelector('.scroller').scrollTop = 0")
    page.click(".rows .row a >> nth=0")
    page.wait_for_selector(".contexts .context, main p")
    assert page.inner_text("h1").endswith(f"latent {n - 1}")


def test_a_text_of_ones_own_and_a_latent_switched_off(page, folder, live):
    with ExplorerServer(folder, live) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.goto(f"{server.address}#view=try")
        page.fill(".try textarea", "def f(x)</script>")
        page.click("text=run")
        page.wait_for_selector(".try .side .own li")
        page.click("text=change >> nth=0")
        page.click("text=switch off")
        page.wait_for_selector("text=and after the change")
        assert "KL here" in page.inner_text(".side")
        server.shutdown()


@pytest.mark.skipif(PICTURES is None, reason="pictures are made where DICTLAB_PICTURES says")
def test_pictures_of_the_shipped_dictionaries(browser, tmp_path):
    root = Path(__file__).parents[3] / "checkpoints"
    files = [root / f"local-topk16-{n}-s0.safetensors" for n in (256, 512, 1024)]
    out = tmp_path / "page"
    explore(files, tokens=65_536, out=out)
    for name, state, scheme in (
        ("overview", "", "light"),
        ("list", "#view=list&of=2&where=class1%3Dnovel&sort=effect1", "light"),
        ("latent", "#view=latent&of=2&where=class1%3Dnovel&sort=effect1&d=2&i=10", "light"),
        ("pair", "#view=pair&d=1&i=345&e=0&j=5", "dark"),
        ("absorbed", "#view=absorbed&d=1&e=2", "light"),
        ("sizes", "#view=lanes", "light"),
    ):
        page = browser.new_page(viewport={"width": 1200, "height": 760}, color_scheme=scheme)
        opened(page, out, state)
        page.wait_for_timeout(500)
        page.screenshot(path=Path(PICTURES) / f"explore-{name}.png")
        page.close()
