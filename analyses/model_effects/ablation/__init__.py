"""What each latent does to the model's output."""
