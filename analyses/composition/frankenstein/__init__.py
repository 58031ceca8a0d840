"""Latents of several dictionaries as one dictionary, chosen by cosine or by error."""
