"""Hub folders: the entry that each one runs as its `generate`, and how such a folder is written and published.

* `shared_arguments`: The arguments that several entries share, and the call of the model's own `generate`.
* `flatten`: Writes an entry and the modules it needs as a flat folder, as transformers' loader wants it.
* `loading_files`: Which files of a model's folder loading needs, and a hash of them.
* `model_loading`: Models by Hub id or folder, and what is built from them, cached for the process.
* `anchor_logits`: The entry of the strategy anchor-logits: `generate` with an `AnchorLogitsProcessor`.
* `judge_loading`: Judges and acceptance checks, by Hub id, by folder or from loaded models.
* `alignbeam`: The entry of the strategy alignbeam: `generate` with `AlignBeam`.
* `embedding_steerer`: The entry of the strategy embedding-steerer: `generate` with an `EmbeddingSteerer`.
* `protected/`: A protected copy of a model: it loads with its guard, or not at all.
* `publish`: Writes the folders of strategies and protected models, and pushes them to the Hub.
"""
