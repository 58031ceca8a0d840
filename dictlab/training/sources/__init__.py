"""What can be trained on: a model on a text, an array, the decoder of a dictionary."""
