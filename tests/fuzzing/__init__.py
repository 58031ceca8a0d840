"""Damaged dictionaries of every format: where they start, how they are damaged, and who opens them."""
