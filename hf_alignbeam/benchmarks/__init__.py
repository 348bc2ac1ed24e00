"""What translating, steering and deciding cost."""
