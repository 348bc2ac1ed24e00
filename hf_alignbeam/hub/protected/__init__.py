"""A protected copy of a model: it loads with its guard, or not at all.

* `generate`: The entry: `generate` with a fixed anchor, judge and settings.
* `model`: The class that loads a protected model, or raises where its guard cannot be built.
* `checks`: Checks of models, settings and files, before a copy is written.
* `pinning`: Pins the anchor and the judge to a commit, or to a folder and its hash.
* `target`: Which models may be a target, and the files that a copy holds of it.
"""
