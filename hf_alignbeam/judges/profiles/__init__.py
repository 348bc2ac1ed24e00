"""The profiles of published guards, one family a file.

* `general`: An instruction-tuned model with a rubric, and any guard that says safe or unsafe.
* `llama_guard`: Llama Guard 1 to 4.
* `qwen3guard`: Qwen3Guard-Gen.
* `shieldgemma`: ShieldGemma, with four policies in one prompt.
* `granite_guardian`: Granite Guardian 3.0 to 4.1.
* `wildguard`: WildGuard and PolyGuard.
* `nemotron`: NemoGuard, Nemotron Safety Guard and Nemotron Content Safety.
* `gpt_oss_safeguard`: gpt-oss-safeguard, with a policy as its system message.
* `prompt_guard`: Prompt Guard 1 and 2, which judge prompts only.
* `classifiers`: Sequence classifiers with known labels.
* `known`: All of these, found by a model's id, its chat template or a profile's name.

To add one, write its record, list it in `known`, and let `tests/judges/profiles` recreate its format.
"""
