"""The anchor following a target's text."""
