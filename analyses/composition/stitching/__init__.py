"""A smaller dictionary with selected latents of larger ones: selection, measurement, tables, captions and plots."""
