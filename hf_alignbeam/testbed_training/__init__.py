"""How the testbed's models are trained, measured and described.

* `cards`: Writes the testbed's model cards, a README.md beside each model's weights.
* `networks`: The untrained networks of the testbed's models.
* `judge_recipes`: How the testbed's two judges are made, and how each encodes an exchange.
* `rates`: Answers to the testbed's prompts, verdicts on them, and the table of every model's rates.
* `train`: Trains the testbed's models from scratch.
"""
