"""Helpers that know nothing of models, text or judges.

* `hub_push`: Folders pushed to the Hub: the whole of one in a single commit, or nothing of it.
* `method_cache`: A method's results kept with its object, and gone with it: `functools.lru_cache` on a method keeps the obje...
* `streaming`: A streamer that gets one prompt's text as it passes, and is ended whatever happens.
"""
