"""Distributions expressed in another vocabulary."""
