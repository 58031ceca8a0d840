"""The explorer: a page on which the latents of several dictionaries are found, seen and compared."""
