"""What an analysis has to say: a sentence, tables, figures, cards, dictionaries it made, and how it came by them.

A `Report` shows itself in a notebook and saves itself as a folder: every table as CSV and Parquet, every figure as PNG
and SVG, cards as JSON, every dictionary as safetensors, one self-contained `report.html`, and `report.json` with the
provenance. A `Scatter` is a figure whose points can be asked, on the page, what they are.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import pandas as pd
import torch

from dictlab.__about__ import VERSION
from dictlab.dictionary import Dictionary
from dictlab.dictionary.hashing import sha256_of_weights
from dictlab.errors import DictlabError
from dictlab.formats.native import native_file as native
from dictlab.reports.cards import Cards
from dictlab.reports.contents import Plot, Scatter, Table
from dictlab.reports.latent_links import LatentLinks, card_links, explorer_links
from dictlab.reports.page import (
    anchor,
    as_json,
    embedded,
    flattened,
    plot_data,
    rendered,
    settled,
    table_data,
    title_of,
)
from dictlab.reports.safe_text import encodable, encodable_frame, for_csv, safe
from dictlab.reports.saved_folder import DPI, SavedReport, contents_record, read_folder
from dictlab.reports.whole_folder import write_whole

__all__ = ["Plot", "Report", "Scatter", "Table", "check_folder"]


@dataclass(frozen=True, eq=False)
class Report:
    """The outcome of an analysis.

    Attributes:
        title: The question that was asked.
        summary: The answer, in one or two sentences.
        tables: By the name of their files.
        plots: By the name of their files, which no table may have where it is a `Scatter`.
        cards: What single things are, by the name of their files; a table may have the same name.
        dictionaries: What the analysis made, by the name of their files.
        settings: The analysis' parameters, seeds included.
        inputs: The dictionaries that went in.
        warnings: What the reader must not overlook.
        passed: Whether all that was checked holds; None where the question was no pass or fail.
        recorded: The provenance of a report that was loaded from its folder; None of one that was made here.
    """

    title: str
    summary: str
    tables: Mapping[str, Table] = field(default_factory=dict)
    plots: Mapping[str, Plot] = field(default_factory=dict)
    cards: Mapping[str, Cards] = field(default_factory=dict)
    dictionaries: Mapping[str, Dictionary] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Dictionary, ...] = ()
    warnings: tuple[str, ...] = ()
    passed: bool | None = None
    recorded: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse two frames that would share a file."""
        twice = [name for name, plot in self.plots.items() if isinstance(plot, Scatter) and name in self.tables]
        if twice:
            raise ValueError(f"a table and a scatter are both called {twice[0]!r}, and would share a file")
        if "report" in self.cards:
            raise ValueError("cards are called 'report', and would share a file with the record")

    @property
    def cautions(self) -> tuple[str, ...]:
        """The warnings, what reading the dictionaries brought to light, and those whose codes depend on the batch."""
        notes = [f"{d.name}: {note}" for d in self.inputs for note in d.metadata.notes]
        batchwise = [d.name for d in self.inputs if d.activation.batchwise]
        if batchwise:
            notes.append(
                f"{', '.join(batchwise)}: BatchTopK without a threshold. The codes of a token depend on the tokens "
                "that it is encoded with, so every number of it holds for batches as they were here."
            )
        return (*self.warnings, *notes)

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """A report back from the folder that `save` wrote: summary, tables, plots, cards, dictionaries, provenance.

        Tables and the points of a `Scatter` are those that were saved. A plot's figure is the saved picture. `inputs`
        are not in the folder: their description is in `recorded`, and what was noted of them among `warnings`.

        Raises:
            DictlabError: The folder holds no report, an earlier version wrote it, or a file of it is missing or broken.
        """
        saved: SavedReport = read_folder(Path(folder))
        return cls(**saved._asdict())

    def save(
        self,
        folder: str | Path,
        *,
        force: bool = False,
        command: str | None = None,
        explorer: str | Path | None = None,
    ) -> Path:
        """Write everything to a folder. It is prepared aside and moved in when complete: nothing is half-written.

        Args:
            folder: Made if it does not exist. Other files in it are left alone.
            force: Replace a report that is already there.
            command: What the user typed, for the provenance.
            explorer: Folder that `dictlab explore` wrote: on the page, latents' numbers lead into it.

        Raises:
            DictlabError: `force` is False and the folder already holds a report or other files of the same names, or
                it is a file; `explorer` holds no explorer.
        """
        folder = Path(folder)
        check_folder(folder, force=force)
        hashes = {one["name"]: one["sha256_of_weights"] for one in self.provenance()["inputs"]}
        links = LatentLinks() if explorer is None else explorer_links(Path(explorer), folder, hashes)
        write_whole(folder, lambda partial: self._write(partial, command, links), force=force)
        return folder

    def provenance(self, command: str | None = None) -> dict[str, Any]:
        """Versions, settings, and a hash of every dictionary that went in; of a loaded report, as it was recorded."""
        if self.recorded is not None:
            return dict(self.recorded)
        return {
            "dictlab": VERSION,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "numpy": numpy.__version__,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command,
            "settings": dict(self.settings),
            "inputs": [_described(dictionary) for dictionary in self.inputs],
        }

    def html(self, command: str | None = None, links: LatentLinks | None = None) -> str:
        """One self-contained page; latents' numbers lead to their cards, or where `links` says."""
        return self._rendered(page=True, provenance=list(flattened(self.provenance(command))), links=links)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self._rendered(page=False, provenance=[])

    def _rendered(self, *, page: bool, provenance: list[tuple[str, str]], links: LatentLinks | None = None) -> str:
        prefixes = {name: anchor("cards", name) for name in self.cards}
        links = replace(links or LatentLinks(), cards=card_links(self.cards, prefixes), titles={})
        plots = [
            plot_data(name, plot.caption, plot.figure, page=page)
            | {"name": name, "scatter": embedded(plot.data()) if page and isinstance(plot, Scatter) else None}
            for name, plot in self.plots.items()
        ]
        tables = [
            {"name": name} | table_data(name, t.caption, t.frame, t.dictionaries_of_latents, links)
            for name, t in self.tables.items()
        ]
        cards = [
            {"id": prefixes[name], "title": title_of(name), "html": deck.html(prefixes[name] if page else None)}
            for name, deck in self.cards.items()
        ]
        heading = {"title": self.title, "summary": self.summary, "warnings": (*self.cautions, *links.cautions)}
        titles = {"titles": links.titles, "titles_data": embedded(links.titles) if links.titles else None}
        return rendered(**heading, **titles, tables=tables, plots=plots, cards=cards, provenance=provenance, page=page)

    def __getitem__(self, name: str) -> pd.DataFrame:
        """The frame of a table: `report["latents"]`.

        Raises:
            KeyError: There is no table of this name; the message lists those that there are.
        """
        if name not in self.tables:
            raise KeyError(f"no table {name!r}; there are {', '.join(self.tables)}")
        return self.tables[name].frame

    def __repr__(self) -> str:
        """Title, summary, and what there is: tables with their shapes, plots, cards, dictionaries."""
        tables = [f"{name} ({len(t.frame)} x {t.frame.shape[1]})" for name, t in self.tables.items()]
        parts = {"tables": tables, "plots": self.plots, "cards": self.cards, "dictionaries": self.dictionaries}
        lines = [f"  {kind}: {', '.join(names)}" for kind, names in parts.items() if names]
        warnings = [f"  {len(self.cautions)} warnings"] if self.cautions else []
        return safe("\n".join([f"<Report: {self.title}", f"  {self.summary}", *lines, *warnings]) + ">")

    def __str__(self) -> str:
        """Title, summary and warnings."""
        return safe("\n".join([self.title, "", self.summary, *(f"\nWarning: {warning}" for warning in self.cautions)]))

    def _write(self, folder: Path, command: str | None, links: LatentLinks) -> None:
        frames = {name: table.frame for name, table in self.tables.items()}
        frames |= {name: plot.frame for name, plot in self.plots.items() if isinstance(plot, Scatter)}
        for name, frame in frames.items():
            frame = encodable_frame(frame)
            for_csv(frame).to_csv(folder / f"{name}.csv", index=False)
            frame.to_parquet(folder / f"{name}.parquet", index=False)
        for name, plot in self.plots.items():
            figure = settled(plot.figure)
            figure.savefig(folder / f"{name}.png", dpi=DPI)
            # A fixed salt and no date: equal figures are equal files.
            with _svg_settings():
                figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        for name, cards in self.cards.items():
            (folder / f"{name}.json").write_text(as_json(cards.data()) + "\n", encoding="utf-8")
        for name, dictionary in self.dictionaries.items():
            native.save(dictionary, folder / f"{name}.safetensors")
        (folder / "report.html").write_text(encodable(self.html(command, links)), encoding="utf-8")
        files = sorted(path.name for path in folder.iterdir())
        content = {
            "title": self.title,
            "summary": self.summary,
            "warnings": list(self.cautions),
            "passed": self.passed,
            "files": [*files, "report.json"],
            **contents_record(self.tables, self.plots, self.cards, self.dictionaries),
            "provenance": self.provenance(command),
        }
        (folder / "report.json").write_text(as_json(content) + "\n", encoding="utf-8")


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse, before any work is done, a folder that `Report.save` would refuse.

    Raises:
        DictlabError: It already holds a report and `force` is False, or it is a file.
    """
    standing = next(path for path in (folder, *folder.parents) if path.exists())
    if not standing.is_dir():
        raise DictlabError(f"{standing}: this is a file; the output is a folder. Choose another with `out=...`.")
    if not os.access(standing, os.W_OK | os.X_OK):
        raise DictlabError(f"{standing}: you may not write there. Choose another folder with `out=...`.")
    if (folder / "report.json").exists() and not force:
        raise DictlabError(
            f"{folder}: already holds a report. Choose another folder with `out=...`, or give `force=True`."
        )


def _described(dictionary: Dictionary) -> dict[str, Any]:
    metadata = dictionary.metadata
    return {
        "name": dictionary.name,
        "sha256_of_weights": sha256_of_weights(dictionary),
        "path": str(dictionary.path) if dictionary.path else None,
        "notes": list(dictionary.metadata.notes),
        "activation": dictionary.activation.record(),
        "model": metadata.model,
        "model_fingerprint": metadata.model_fingerprint,
        "site": metadata.site,
    }


def _svg_settings() -> Any:
    import matplotlib as mpl

    return mpl.rc_context({"svg.hashsalt": "dictlab", "svg.fonttype": "none"})
