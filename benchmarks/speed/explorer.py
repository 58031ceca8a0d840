"""The explorer against numbers of latents and tokens: what it costs to make it, to open it, and to look at a latent.

First the command on shipped dictionaries, for two numbers of tokens. Then folders of more latents than anybody has
trained here: the latents of a small explorer drawn again and again, so that sizes of files are those of real latents.
They are opened in Chromium from disk. Needs playwright and chromium (`make browser`); times are of a machine that does
nothing else.

    python -m benchmarks.speed.explorer --latents 1024 16384 98304 --tokens 16384 65536
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from analyses.explorer.data_files import packed, packed_ids, packed_unit, read_data, unpacked, write_data
from analyses.explorer.page_meta import LATENTS_A_FILE
from benchmarks._common import print_frame, shipped

FAMILY = ("local-topk16-1024-s0", "local-topk16-1024-s1", "local-relu5-1024-s0")
MAKE = """
import resource, sys, time
from pathlib import Path
from analyses.explorer.explore import explore
start = time.perf_counter()
explore(sys.argv[3:], tokens=int(sys.argv[1]), umap=False, out=Path(sys.argv[2]))
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
VIEWS = {  # what is done after the list is there, and what shows that it is done
    "sort": ("#view=list&sort=-rate", ".rows .row a"),
    "search": ("#view=list&q=on%3Aself", ".count"),
    "latent": ("#view=latent&d=1&i={latent}", ".contexts .context"),
    "another latent": ("#view=latent&d=0&i={other}", ".contexts .context"),
    "splits": ("#view=splits&d=0&e=1", "article h1"),
    "twins": ("#view=triggers&d=0&e=1", "article h1"),
    "absorbed": ("#view=absorbed&d=0&e=1", "article h1"),
    "map": ("#view=map", "canvas"),
}


def made(tokens: int, out: Path) -> dict[str, Any]:
    """Make an explorer of the shipped dictionaries; its cost."""
    files = map(str, shipped(*FAMILY))
    command = [sys.executable, "-c", MAKE, str(tokens), str(out), *files]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak = run.stdout.split()[-2:]
    return sizes(out) | {"seconds": float(seconds), "peak memory (MB)": float(peak) / 1024}


def sizes(folder: Path) -> dict[str, Any]:
    """How large an explorer's folder is, for each latent and for each token of the sample."""
    meta = read_data(folder / "data", "meta")
    latents, tokens = sum(about["latents"] for about in meta["dictionaries"]), meta["tokens"]
    of_latents = sum(size_of(folder, f"{name}-*") for name in ("latents", "index", "pairs"))
    return {
        "latents of all": latents,
        "tokens": tokens,
        "folder (MB)": size_of(folder) / 1e6,
        "kB a latent": of_latents / latents / 1e3,
        "bytes a token": (size_of(folder, "text-*") + size_of(folder, "firings-*")) / tokens,
    }


def size_of(folder: Path, pattern: str = "*") -> int:
    """Bytes of files, linked ones as often as they are there."""
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())


def enlarge(small: Path, large: Path, latents: int) -> None:
    """An explorer with so many latents a dictionary: those of a small one drawn again and again.

    Args:
        small: An explorer of dictionaries of one size.
        large: The folder to make.
        latents: Of each dictionary.
    """
    shutil.copytree(small, large, ignore=shutil.ignore_patterns("latents*", "index-*"))
    source, data = small / "data", large / "data"
    meta = read_data(source, "meta")
    n, random = meta["dictionaries"][0]["latents"], np.random.default_rng(0)
    draws = [random.integers(0, n, latents) for _ in meta["dictionaries"]]
    for d, rows in enumerate(draws):
        index = read_data(source, f"index-{d}")
        drawn = {name: unpacked(content).reshape(n, -1)[rows] for name, content in index.items()}
        columns = {}
        for name, values in drawn.items():
            if name.startswith("near"):
                values = random.integers(0, latents, (latents, 1)).astype(np.int32)
            pack = packed_unit if "unit16" in index[name] else packed_ids if name in ("on", "up") else packed
            columns[name] = pack(values.ravel())
        write_data(data, f"index-{d}", columns)
        about = meta["dictionaries"][d]
        about |= {"latents": latents, "dead": int((drawn["rate"] == 0).sum())}
        about["classes"] = {e: np.bincount(drawn[f"class{e}"].ravel(), minlength=3).tolist() for e in about["classes"]}
        files = n // LATENTS_A_FILE
        for file in range(-(-latents // LATENTS_A_FILE)):
            os.link(source / f"latents-{d}-{file % files}.js", data / f".latents-{d}-{file}.js")
            rename_call(data / f".latents-{d}-{file}.js", data / f"latents-{d}-{file}.js", f"latents-{d}-{file}", file)
    for d in range(len(draws)):
        for e in range(d + 1, len(draws)):
            pairs = {k: unpacked(v) for k, v in read_data(source, f"pairs-{d}-{e}").items()}
            rows = random.integers(0, len(pairs["a"]), 6 * latents)
            pairs = {k: v[rows] for k, v in pairs.items()} | {
                k: random.integers(0, latents, len(rows)).astype(np.int32) for k in ("a", "b")
            }
            write_data(data, f"pairs-{d}-{e}", {k: packed(v) for k, v in pairs.items()})
    places = [random.normal(size=2 * latents).astype(np.float32) for _ in draws]
    write_data(data, "map", {"positions": [packed(p) for p in places]})
    write_data(data, "meta", meta)


def rename_call(linked: Path, path: Path, name: str, file: int) -> None:
    """A data file is a call that names itself: those that are looked at are written under their own name."""
    if file in LOOKED_AT:
        script = linked.read_text(encoding="ascii")
        path.write_text(f'dictlabReceive("{name}"' + script[script.index(",'") :], encoding="ascii")
        linked.unlink()
    else:
        linked.rename(path)


LOOKED_AT: set[int] = set()


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        path = shutil.which("chromium")
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Renderer:
    """The process of a browser that draws pages."""

    def __init__(self, browser: Any) -> None:
        session = browser.new_browser_cdp_session()
        processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
        session.detach()
        self.folders = [Path(f"/proc/{process['id']}") for process in processes if process["type"] == "renderer"]

    def memory(self) -> float:
        """Proportional set size in MB."""
        lines = [line for folder in self.folders for line in (folder / "smaps_rollup").read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024

    def seconds(self) -> float:
        """Time on a processor so far, which does not depend on what else the machine does."""
        spent = [(folder / "stat").read_text().rsplit(")", 1)[1].split()[11:13] for folder in self.folders]
        return sum(int(user) + int(system) for user, system in spent) / os.sysconf("SC_CLK_TCK")


def opened(folder: Path, latents: int) -> dict[str, Any]:
    """Open a folder and go through its views: milliseconds of each, and memory."""
    row: dict[str, Any] = {"latents": latents, "index (MB)": size_of(folder, "index-*") / 1e6}
    with chromium() as browser:
        page = browser.new_page()
        page.goto("about:blank")
        renderer = Renderer(browser)
        row["empty page (MB)"] = renderer.memory()

        def timed(name: str, address: str, selector: str) -> None:
            start, spent = time.perf_counter(), renderer.seconds()
            if address.startswith("file:"):
                page.goto(address)
            else:
                page.evaluate("document.getElementById('main').replaceChildren()")
                page.evaluate("address => { location.hash = address; }", address)
            page.wait_for_selector(selector, state="attached", timeout=120_000)
            row[f"{name} (ms)"] = 1e3 * (time.perf_counter() - start)
            row[f"{name}, processor (ms)"] = 1e3 * (renderer.seconds() - spent)

        page.goto(f"file://{folder}/index.html#view=overview")
        page.wait_for_selector("main h1")
        page.goto("about:blank")
        renderer = Renderer(browser)  # a site of its own has a process of its own
        timed("overview", f"file://{folder}/index.html", "main h1")
        page.close()
        page = browser.new_page()
        renderer = Renderer(browser)
        timed("list", f"file://{folder}/index.html#view=list", ".rows .row a")
        row["list (MB)"] = in_use(page, browser)
        for name, (address, selector) in VIEWS.items():
            timed(name, address.format(latent=latents - 1, other=latents // 2), selector)
        row["all views (MB)"] = in_use(page, browser)
    return row


def in_use(page: Any, browser: Any) -> float:
    """Memory in MB after what is not used any more has been collected."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    session.detach()
    return Renderer(browser).memory()


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--latents", type=int, nargs="+", default=[1024, 16384, 98304], help="of each of 3 dictionaries"
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[16384, 65536])
    parser.add_argument("--source", type=Path, help="an explorer of three equally large dictionaries to draw from")
    given = parser.parse_args()
    with TemporaryDirectory() as scratch:
        source = given.source
        if source is None:
            rows = []
            for tokens in given.tokens:
                source = Path(scratch) / f"made-{tokens}"
                rows.append(made(tokens, source))
            print_frame(pd.DataFrame(rows))
        else:
            print_frame(pd.DataFrame([sizes(source)]))
        rows = []
        for latents in given.latents:
            LOOKED_AT.update({(latents - 1) // LATENTS_A_FILE, latents // 2 // LATENTS_A_FILE})
            folder = Path(scratch) / f"large-{latents}"
            enlarge(source, folder, latents)
            rows.append(opened(folder, latents))
            shutil.rmtree(folder)
        table = pd.DataFrame(rows).set_index("latents").round(1).T
        print_frame(table.rename_axis("ms, or as said").reset_index())


if __name__ == "__main__":
    main()
