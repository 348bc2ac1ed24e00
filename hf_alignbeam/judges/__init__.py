"""Judges: callables that say how harmful responses are, and the calls that make their failures harmless.

* `base`: What a judge is, a cache for one, and the checks that judges with a model share.
* `classifier_judge`: A sequence classifier as judge.
* `failsafe`: Calls of a judge in which no failure lets a response through unjudged.
* `llm_judge`: A causal language model as judge.
* `moderation_api`: A moderation endpoint as judge, through OpenAI's client library.
* `plausibility`: Accepts answers that a safe model finds probable.

To add a judge, write a module like `classifier_judge`; `hub.judge_loading` loads judges by name.
"""
