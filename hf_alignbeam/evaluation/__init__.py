"""Systems held against prompts: answered, scored, told with intervals. Outside the core, like all that is run at a terminal."""
