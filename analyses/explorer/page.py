"""The explorer's page: one HTML file, one script and one style sheet, out of the files beside this module."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from pathlib import Path

PAGE = "index.html"
# In the order in which they are run.
SCRIPTS = (
    "data.js",
    "text.js",
    "columns.js",
    "state.js",
    "notes.js",
    "search.js",
    "export.js",
    "list.js",
    "overview.js",
    "latent.js",
    "pair.js",
    "splits.js",
    "absorbed.js",
    "lanes.js",
    "map.js",
    "try.js",
    "suggestions.js",
    "main.js",
)
STYLE = "explorer.css"
# Scripts and styles are the folder's own; nothing is fetched but from where the page is from, nothing is embedded.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'"
)


def write_page(folder: Path, title: str) -> None:
    """Write the page, its script and its style sheet.

    Args:
        folder: Where.
        title: Of the page.
    """
    (folder / PAGE).write_text(page_html(title), encoding="utf-8")
    (folder / "explorer.js").write_text(script(), encoding="utf-8")
    (folder / STYLE).write_text(_asset(STYLE), encoding="utf-8")


def page_html(title: str) -> str:
    """The page itself, which holds nothing from data but its title."""
    return _asset("index.html").replace("{policy}", POLICY).replace("{title}", escape(title))


def script() -> str:
    """All scripts as one, in a scope of its own."""
    return '"use strict";\n(() => {\n' + "\n".join(_asset(name) for name in SCRIPTS) + "\n})();\n"


def _asset(name: str) -> str:
    return (files("analyses.explorer") / "static" / name).read_text(encoding="utf-8")
