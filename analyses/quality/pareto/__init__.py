"""Error against sparsity of several dictionaries."""
