"""The profiles of published guards, one family a file."""
