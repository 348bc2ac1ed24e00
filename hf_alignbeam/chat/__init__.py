"""Conversations, and the templates that render them."""
