"""Figures of training: objectives at equal tokens, recipes, precision, lengths."""
