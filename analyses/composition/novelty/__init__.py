"""What latents of a larger dictionary add to a smaller one: the analysis, its tables, captions and plots."""
