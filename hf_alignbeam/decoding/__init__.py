"""The decoding strategy."""
