"""Prompt embeddings found by search."""
