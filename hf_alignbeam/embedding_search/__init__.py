"""Prompt embeddings whose answers a judge passes: `EmbeddingSteerer`.

* `embeddings`: Prompts as a model's input embeddings: rendered, embedded, padded, and told apart by the model they belong to.
* `fingerprint`: What tells a model from others: a hash of its parameters.
* `journal`: What a search has already paid for, line by line on the disk, so that a killed one goes on where it was.
* `prompt_tuning`: A universal prefix: a few virtual tokens that make a model give, to any prompt, the answers that a search ...
* `settled`: How answers are generated in one call: a user's arguments of `generate`, settled so that a search can repeat them.
* `batched_generation`: Many prompts' embeddings answered at once, under a budget of tokens.
* `steered_prompts`: Prompts with the embeddings that were found for them: stored, loaded for the same model, and given to `g...
* `zeroth_order`: Zeroth-order search around one prompt's embeddings: which probes to try, and where their answers' harm says...
* `search_state`: One prompt's search so far: what was tried, what was said of it, what it has cost, and what passes.
* `search_loop`: Many prompts searched at once, round by round: probes answered together, and the judge asked as seldom as ca...
* `steerer`: EmbeddingSteerer: prompt embeddings whose answers a black-box judge passes, found by zeroth-order search.
"""
