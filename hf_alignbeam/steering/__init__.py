"""The anchor mixed into the target's scores."""
