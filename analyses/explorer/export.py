"""An explorer's latents as the feature files of other pages: Neuronpedia's, and circuit-tracer's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from analyses.explorer.circuit_tracer_files import write_circuit_tracer
from analyses.explorer.folder_reader import ExplorerReader
from analyses.explorer.neuronpedia_files import write_neuronpedia
from dictlab.__about__ import VERSION
from dictlab.errors import DictlabError
from dictlab.reports.report import check_folder
from dictlab.reports.whole_folder import RECORD, write_whole
from dictlab.runtime.progress import Phase


class Exported(NamedTuple):
    """What `export` wrote.

    Attributes:
        folder: A folder for each dictionary in it.
        latents: Of all dictionaries.
        dead: Latents that are active nowhere in the sample, and in no upload to Neuronpedia.
    """

    folder: Path
    latents: int
    dead: int

    def __str__(self) -> str:
        """What the command prints."""
        left_out = f", {self.dead} of them dead and in no upload" if self.dead else ""
        return f"Feature files of {self.latents:,} latents{left_out}: {self.folder}"


def export(
    explorer: Path,
    *,
    to: Literal["neuronpedia", "circuit-tracer"],
    model_id: str | None = None,
    out: Path | None = None,
    force: bool = False,
) -> Exported:
    """Write an explorer's latents as feature files that another page shows.

    Args:
        explorer: Folder that `dictlab explore` wrote.
        to: neuronpedia: bodies of uploads, and rows of its data sets. circuit-tracer: a JSON file a latent, which
            Anthropic's attribution-graph page reads too.
        model_id: What Neuronpedia calls the model; the model's name by default.
        out: Folder to write, with one for each dictionary; out/export by default.
        force: Replace what is already in the folder.

    Returns:
        The folder, and how many latents are in it.

    Raises:
        DictlabError: The folder holds no explorer, a dictionary's site has no layer's number, or `out` is taken.

    Example:
        dictlab export out/explore-small-large --to circuit-tracer
        dictlab export out/explore-small-large --to neuronpedia --model-id gpt2-small --out out/upload
    """
    folder = Path("out/export") if out is None else Path(out)
    check_folder(folder, force=force)
    reader = ExplorerReader(Path(explorer))
    sources = _sources(reader.meta)
    dead: list[int] = []

    def write(partial: Path) -> None:
        with Phase("Writing feature files", len(sources), unit="dictionaries") as phase:
            for dictionary, (layer, name) in enumerate(sources):
                own = partial / name
                own.mkdir()
                if to == "circuit-tracer":
                    write_circuit_tracer(reader, dictionary, layer, own)
                else:
                    model = model_id or str(reader.meta["model"])
                    dead.append(write_neuronpedia(reader, dictionary, model, f"{layer}-{name}", own))
                phase.advance()
        record = {
            "title": f"Feature files for {to}",
            "dictlab": VERSION,
            "explorer": str(explorer),
            "identity": reader.meta["identity"],
            "dictionaries": [about["name"] for about in reader.meta["dictionaries"]],
            "files": [*(name for _, name in sources), RECORD],
        }
        (partial / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")

    write_whole(folder, write, force=force)
    return Exported(folder, sum(about["latents"] for about in reader.meta["dictionaries"]), sum(dead))


def _sources(meta: dict[str, Any]) -> list[tuple[int, str]]:
    """Of each dictionary the number of its layer, and a name that can stand in an address and as a folder."""
    found: list[tuple[int, str]] = []
    for about in meta["dictionaries"]:
        layer = re.search(r"\.(\d+)\.", f".{about['site']}.")
        if layer is None:
            raise DictlabError(
                f"{about['name']}: its site {about['site']!r} has no layer's number, by which feature files are named."
            )
        name = re.sub(r"[^\w.]+", "-", about["name"], flags=re.ASCII).strip("-.") or "dictionary"
        taken = {one for _, one in found}
        found.append((int(layer[1]), name if name not in taken else f"{name}-{len(found)}"))
    return found
