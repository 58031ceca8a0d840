"""SAELens: a folder of cfg.json and sae_weights.safetensors, of every version and architecture."""

from dictlab.formats.libraries.saelens.reading import read, recognise
from dictlab.formats.libraries.saelens.writing import write

__all__ = ["read", "recognise", "write"]
