"""Several dictionaries as one pool of latents: the error of any subset of it, the search for a good one, its refit."""
