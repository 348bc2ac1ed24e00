"""What tells how harmful a response is, and how it is asked.

* `base`: What a judge is, and the two that need nothing but a model: a causal one that says its verdict, and a classifier.
* `classifier_judge`: ClassifierJudge: a sequence classifier whose labels are harm.
* `failsafe`: Asking a judge so that nothing it does can let a response through unjudged.
* `llm_judge`: LLMJudge: a causal language model that says its verdict.
* `moderation_api`: A judge that asks a moderation endpoint, through OpenAI's client library.
* `plausibility`: A check that an answer is one that a safe model might give: by that model's own probability of it.
"""
