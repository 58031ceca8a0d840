"""Which patterns of tokens, or which sentences, explain latents."""
