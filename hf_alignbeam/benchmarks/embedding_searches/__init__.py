"""Embedding searches compared: on the testbed, and on real models with a judge that no search has seen.

* `testbed_searches`: `alignbeam evaluate --embedding-search`: searches on the testbed.
* `recipe_searches`: Searches on the harmful prompts of a recipe.
"""
