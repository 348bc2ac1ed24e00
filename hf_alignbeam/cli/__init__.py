"""The `alignbeam` command.

* `judges/`: The options that every command has for its judge, and `alignbeam calibrate`.
* `strategy_settings`: The option `--set`, by which a command takes every setting of a strategy.
* `demo`: `alignbeam demo` shows the testbed's specialist, plain and guarded, side by side.
* `diagnosis/`: The checks of `alignbeam doctor`.
* `doctor`: `alignbeam doctor` finds what is wrong with a set-up before it is used.
* `evaluate`: `alignbeam evaluate` compares systems on prompts, by a recipe, on one machine or many.
* `explain`: One answer explained: how far each token was steered, what the judge read, what was tried.
* `explain_picture`: One explained answer as a picture.
* `generate`: `alignbeam generate` answers prompts with a guarded target.
* `publish`: `alignbeam publish` and `alignbeam protect` write Hub folders on the disk, or push them.
* `settings_page`: The settings page of the guides, made from signatures and docstrings.
* `steer`: `alignbeam steer` searches embeddings for a file of prompts, and keeps them in a folder.
* `app`: The options of every command; the work is done in the modules above.
"""
