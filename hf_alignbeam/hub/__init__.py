"""What the Hub holds and loads."""
