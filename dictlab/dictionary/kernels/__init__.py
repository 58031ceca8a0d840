"""Sparse products and their gradients."""
