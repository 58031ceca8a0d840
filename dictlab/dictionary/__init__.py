"""A sparse dictionary: its weights, activation function and input normalisation, and the codes that it gives."""

from dictlab.dictionary.dictionary import Dictionary, Metadata

__all__ = ["Dictionary", "Metadata"]
