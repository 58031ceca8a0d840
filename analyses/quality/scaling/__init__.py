"""Scaling laws of the error, fitted to training runs."""
