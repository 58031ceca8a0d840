"""What a dictionary's error and its latents do to the model: downstream, pathology, ablation."""
