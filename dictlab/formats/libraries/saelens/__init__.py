"""SAELens: a folder of cfg.json and sae_weights.safetensors, of every version and architecture."""

from dictlab.formats.libraries.saelens.reading import read, recognise
from dictlab.formats.libraries.saelens.writing import WRITES_TWO_PLACES, write

__all__ = ["WRITES_TWO_PLACES", "read", "recognise", "write"]
