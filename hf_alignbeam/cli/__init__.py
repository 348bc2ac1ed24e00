"""What can be typed at a terminal.

* `calibrate`: `alignbeam calibrate`: the threshold of a judge, from responses that somebody has labelled.
* `demo`: `alignbeam demo`: the testbed's specialist, plain and under the whole strategy, side by side.
* `doctor_checks`: What can be wrong with a target, an anchor and a judge, one check a function: each says what it found and ...
* `doctor`: `alignbeam doctor`: what is wrong with a set-up, before it matters.
* `evaluate`: `alignbeam evaluate`: systems held against prompts, by a recipe; on one machine or many.
* `explain`: One answer explained: its tokens and how far steering moved each, where the judge read, what was tried and what ...
* `explain_picture`: One answer as a picture: a bar over each token for how far it was moved, the judge's verdicts under it, ...
* `generate`: `alignbeam generate`: answers from any target model, guarded by any anchor and any judge.
* `publish`: `alignbeam publish` and `alignbeam protect`: Hub folders on the disk, or pushed.
* `settings_page`: The settings page of the guides, made from signatures and docstrings.
* `steer`: `alignbeam steer`: embeddings for a file of prompts, found once and kept in a folder.
* `app`: The `alignbeam` command: what can be typed, and what each option means. The work is done in `commands/`.
"""
