"""dictlab: train, compare and stitch sparse dictionaries of a language model's activations."""

from dictlab.__about__ import VERSION
from dictlab.codes import Codes
from dictlab.dictionary import Dictionary, Metadata
from dictlab.errors import DictlabError
from dictlab.evaluate import evaluate
from dictlab.formats.loading import load
from dictlab.formats.native import save
from dictlab.lm import LanguageModel
from dictlab.report import Report
from dictlab.sparsity import ReLU, TopK
from dictlab.text import Text
from dictlab.train import TrainConfig, train

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
