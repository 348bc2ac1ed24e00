"""How the testbed's models are made, measured and described.

* `cards`: The testbed's model cards, a README.md beside each model's weights.
* `judge_recipes`: How the testbed's two judges are made: their tokenizers, their networks, and what one exchange looks like ...
* `rates`: Answers to many of the testbed's prompts, what the grammar says of them, and every model's own rates.
* `train`: Train the testbed's models from nothing: `python -m hf_alignbeam.testbed_training.train [MODEL ...] [--seed N] [--...
"""
