"""Damaged files, killed runs: what is read, refused, or gone on from."""
