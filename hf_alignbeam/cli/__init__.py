"""The `alignbeam` command.

* `judges/`: The options that every command has for its judge, and `alignbeam calibrate`.
* `strategy_settings`: The option `--set`, by which a command takes every setting of a strategy.
* `bench`: The options of `alignbeam bench`; what it measures is in `benchmarks`.
* `demo`: `alignbeam demo` shows the testbed's specialist, plain and guarded, side by side.
* `diagnosis/`: The checks of `alignbeam doctor`.
* `doctor`: `alignbeam doctor` finds what is wrong with a set-up before it is used.
* `evaluate`: `alignbeam evaluate` compares systems on prompts, by a recipe, on one machine or many.
* `explanation/`: One answer explained, in words and as a picture.
* `generate`: `alignbeam generate` answers prompts with a guarded target.
* `publish`: `alignbeam publish` and `alignbeam protect` write Hub folders on the disk, or push them.
* `settings_page`: The settings page of the guides, made from signatures and docstrings.
* `steer`: `alignbeam steer` searches embeddings for a file of prompts, and keeps them in a folder.
* `app`: The options of every command; the work is done in the modules above.
"""
