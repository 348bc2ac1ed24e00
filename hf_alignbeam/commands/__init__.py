"""What `alignbeam` runs, a module a command."""
