"""Several processes in one run: tokens or latents shared out, weights gathered."""
