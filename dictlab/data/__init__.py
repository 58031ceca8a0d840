"""Text, tokens and activations: documents, packed contexts, shuffled streams, arrays, the cache on disk."""
