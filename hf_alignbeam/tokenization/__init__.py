"""Token ids as byte strings."""
