"""The path from a smaller dictionary to a larger one, a group of matched latents at a time."""
