"""What translating, steering, judging and searching cost, and how exact they are.

* `exact_translation`: The exact translation of an anchor's distribution, by walking what it may write.
* `invariants`: Laws that hold in every mode of `generate`, and the error of a cached anchor.
* `realistic_models`: Models of realistic shape with random weights, to measure time and memory with.
* `step_cost`: `alignbeam bench --speed`: the time of a steered decoding step.
* `memory`: `alignbeam bench --memory`: the peak memory of a LoRA whose base is its anchor.
* `strategy_cost`: `alignbeam bench --decoding`: the strategy compared with plain `generate`.
* `tiny_families`: Tiny random decoders of many families, for laws that must hold for every kind of layer.
* `family_matrix`: `alignbeam bench --families`: the laws on every family in every mode.
* `cleared_caches`: Objects that forget what their methods have computed.
* `translation_loss`: `alignbeam bench --translation`: what translating between real tokenizers costs.
* `translation_fidelity`: `alignbeam bench --fidelity`: the distance of each rule to the exact translation.
* `pairs/`: One pair of models: what building a guard and a steered step cost, and how exact the translation is.
* `embedding_searches/`: Embedding searches compared, on the testbed and on real models.
* `judge_attacks/`: Disguised texts: what passes a judge by the disguise alone.
* `gpu/`: The laws and the costs on one card.
"""
