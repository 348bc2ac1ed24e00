"""The texts that a judge reads of one answer."""
