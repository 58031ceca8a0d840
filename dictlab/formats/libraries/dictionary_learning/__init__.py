"""dictionary_learning: a folder of config.json and ae.pt, of every class of its dictionaries."""

from dictlab.formats.libraries.dictionary_learning.reading import read, recognise
from dictlab.formats.libraries.dictionary_learning.writing import write

__all__ = ["read", "recognise", "write"]
