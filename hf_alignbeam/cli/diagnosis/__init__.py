"""The checks of `alignbeam doctor`: what can be wrong with a target, an anchor and a judge, and what to do about it.

* `examined`: A loaded model with its tokenizer, the result of a check, and the questions that checks ask.
* `model_checks`: Checks of one model with its tokenizer.
* `system_checks`: Checks of a target with its anchor.
* `judge_checks`: The check of a judge.
* `examination`: Runs every check, in order.
"""
