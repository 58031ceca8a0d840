"""Bootstraps and p values, least squares, seeds by purpose, counts of operations."""
