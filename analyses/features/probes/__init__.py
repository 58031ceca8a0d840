"""Single latents as detectors of labels of tokens."""
