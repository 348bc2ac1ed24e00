"""Embedding search: finds prompt embeddings whose answers a judge passes. The public class is `EmbeddingSteerer`.

* `embeddings`: Prompts as a model's input embeddings, with the positions that may be perturbed.
* `fingerprint`: Fingerprints of models and judges: hashes of what decides their answers.
* `zeroth_order`: Draws probes around one prompt's embeddings, and moves their center.
* `batched_generation`: Answers to many prompts' embeddings, generated in batches under a token budget.
* `journal`: Every answer and verdict that was paid for, on disk, so that a killed search resumes.
* `steered_prompts`: Prompts with the embeddings found for them: saved, loaded and given to `generate`.
* `search_state`: One prompt's search so far: probes, answers, verdicts, costs and the best result.
* `search_loop`: Many prompts searched at once, in rounds.
* `prompt_searcher`: Searches of conversations, under the settings of one `EmbeddingSteerer`.
* `prompt_tuning`: A universal prefix: virtual tokens fitted to the answers that a search found.
* `steerer`: `EmbeddingSteerer`, the public class.
"""
