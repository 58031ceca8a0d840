"""What the site needs beside the documents: files of the repository's root as pages, and links to them."""

import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "checkpoints/README.md": "checkpoints.md",
}
LINK = re.compile(r"\]\(((?:\.\./)+)([\w./-]+)(#[\w-]+)?\)")


def on_files(files: Files, config) -> Files:
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        depth = source.count("/")
        text = re.sub(r"\]\((?:\.\./)?docs/", "](", text) if depth else text.replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Links that leave docs/ lead to the page of that file, and to plain text where it has none."""
    up = page.file.src_uri.count("/")

    def inside(match: re.Match) -> str:
        climbed, target, part = match[1].count("../"), match[2], match[3] or ""
        if climbed <= up:
            return match[0]
        return f"]({'../' * up}{PAGES[target]}{part})" if target in PAGES else "](#)"

    return LINK.sub(inside, markdown)
