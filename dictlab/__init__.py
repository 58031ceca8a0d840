"""dictlab: train, compare and stitch sparse dictionaries of a language model's activations."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from dictlab.__about__ import VERSION
from dictlab.analysis_entries import COMMANDS, GROUP, SHORT, load_analysis

if TYPE_CHECKING:
    from dictlab.data.text import Text
    from dictlab.dictionary import Dictionary, Metadata
    from dictlab.dictionary.activation_functions import ReLU, TopK
    from dictlab.dictionary.codes import Codes
    from dictlab.errors import DictlabError
    from dictlab.evaluation.evaluate import evaluate
    from dictlab.formats.loading import load
    from dictlab.formats.native.native_file import save
    from dictlab.model.language_model import LanguageModel
    from dictlab.reports.report import Report
    from dictlab.training import TrainConfig, train

__version__ = VERSION

# Where each name is, as imported above: torch and transformers are imported when one is used, not before.
_HOMES = {
    "Codes": "dictlab.dictionary.codes",
    "Dictionary": "dictlab.dictionary",
    "DictlabError": "dictlab.errors",
    "LanguageModel": "dictlab.model.language_model",
    "Metadata": "dictlab.dictionary",
    "ReLU": "dictlab.dictionary.activation_functions",
    "Report": "dictlab.reports.report",
    "Text": "dictlab.data.text",
    "TopK": "dictlab.dictionary.activation_functions",
    "TrainConfig": "dictlab.training",
    "evaluate": "dictlab.evaluation.evaluate",
    "load": "dictlab.formats.loading",
    "save": "dictlab.formats.native.native_file",
    "train": "dictlab.training",
}

__all__ = [
    "Codes",
    "Dictionary",
    "DictlabError",
    "LanguageModel",
    "Metadata",
    "ReLU",
    "Report",
    "Text",
    "TopK",
    "TrainConfig",
    "evaluate",
    "load",
    "save",
    "train",
]


def __getattr__(name: str) -> Any:
    """A public name or an analysis (`dictlab.novelty`), imported when it is first asked for."""
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif (entry := _analyses().get(name)) is not None:
        value = load_analysis(entry)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names and the analyses beside those of the module."""
    return sorted({*globals(), *__all__, *_analyses()})


def _analyses() -> dict[str, EntryPoint]:
    """By name, commands that are none (`explore`, `latent`) and `stitch` and `verify` as on the command line included;
    `dictlab.training` is the package, no analysis."""
    both = [*entry_points(group=COMMANDS), *entry_points(group=GROUP)]
    entries = {entry.name: entry for entry in both if entry.name != "training"}
    return entries | {short: entries[name] for short, name in SHORT.items() if name in entries}
