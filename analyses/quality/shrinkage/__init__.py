"""Whether activations are too small, and what larger ones would gain."""
