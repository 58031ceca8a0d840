"""Whether a dictionary's errors change the model's output more than random errors of their size."""
