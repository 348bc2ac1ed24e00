"""How the testbed's models are made."""
