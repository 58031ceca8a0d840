"""Which known features latents stand for: probes, and explanations by strings of tokens."""
