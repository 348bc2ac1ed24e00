"""The anchor following a target's text, and what it would write next.

* `state`: What the anchor believes comes next, from every point of a text that it may be writing on from.
* `covering`: What the anchors of many rows say next, summed over every point they may be writing on from, in the target's vo...
* `follower`: The anchor following a target's text: which of its tokens are fed, what is pending, what it would say next.
"""
