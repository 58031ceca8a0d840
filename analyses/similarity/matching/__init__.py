"""Which latents of two dictionaries are the same: cosines, joint activity, representations."""
