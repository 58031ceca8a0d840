"""What the model loses when a dictionary's reconstruction takes the place of the activation."""
