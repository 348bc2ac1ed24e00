"""Judges: callables that say how harmful responses are, and the calls that make their failures harmless.

* `base`: What a judge is, a cache for one, and the checks that judges with a model share.
* `failsafe`: Calls of a judge in which no failure lets a response through unjudged.
* `known_exchanges`: Exchanges whose verdict is known.
* `calibration`: A judge's own threshold, found on known exchanges and reported as .5.
* `reading/`: The texts that a judge reads of one answer: the answer itself, a folded copy, the parts of faked turns.
* `profile`: What a guard model expects to read, and how it writes its verdict, as a record.
* `profiles/`: The profiles of published guards, one family a file.
* `rendering`: An exchange as a guard reads it, by its profile.
* `verdicts`: The probabilities of verdict texts, read from next-token probabilities.
* `classifier_judge`: A sequence classifier as judge.
* `llm_judge`: A causal language model as judge.
* `generating_judge`: A causal language model as judge that writes before its verdict.
* `probes/`: An instruction-tuned model as judge, by linear probes of its hidden states.
* `plausibility`: Accepts answers that a safe model finds probable.
* `remote/`: Judges behind an HTTP endpoint.

To add a published guard, write a file like `profiles/llama_guard`; to add another kind of judge, a module like
`classifier_judge`. `hub.judge_loading` loads judges by name.
"""
