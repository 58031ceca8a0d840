"""What the explorer shows of latents: records, index, examples, twins, promoted tokens, map."""
