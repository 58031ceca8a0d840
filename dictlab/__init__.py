"""dictlab: train, compare and stitch sparse dictionaries of a language model's activations."""

from dictlab.__about__ import VERSION
from dictlab.data.text import Text
from dictlab.dictionary import Dictionary, Metadata
from dictlab.dictionary.activation_functions import ReLU, TopK
from dictlab.dictionary.codes import Codes
from dictlab.errors import DictlabError
from dictlab.evaluation.evaluate import evaluate
from dictlab.formats.loading import load
from dictlab.formats.native import save
from dictlab.model.language_model import LanguageModel
from dictlab.reports.report import Report
from dictlab.training import TrainConfig, train

__version__ = VERSION

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
