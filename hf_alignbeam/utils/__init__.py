"""Helpers that know nothing of models, text or judges."""
