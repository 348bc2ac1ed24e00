"""What a Hub folder holds, and what `generate` does once it is loaded.

* `arguments`: What a Hub folder's `generate` is given: which arguments are whose.
* `flatten`: One Hub entry and the modules behind it, as the flat folder that transformers' loader reads.
* `model_loading`: Models by their ids, and what is built of them: loaded once, kept for the life of the process.
* `anchor_logits`: The `generate` of a Hub folder that holds an `AnchorLogitsProcessor`.
* `judge_loading`: Judges, and what accepts answers, by their names.
* `alignbeam`: What a Hub folder's `generate` does: plain arguments in, a guard or a strategy out, one function a strategy.
* `embedding_steerer`: The `generate` of a Hub folder that holds an `EmbeddingSteerer`.
* `protected_generate`: The `generate` of a model that brings its own protection: settled when it is loaded, and by no call.
* `protected_model`: A protected model repository: loading it gives the target with its guard in place, or raises.
* `publish`: Hub folders: a strategy that any model can load, or a model that brings its own protection.
"""
