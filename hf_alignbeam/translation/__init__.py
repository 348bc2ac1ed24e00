"""A distribution over one vocabulary expressed over another.

* `retokenization`: The target's next tokens for a text of the anchor, and whether its tokens so far agree with it.
* `translator`: The anchor's next-token distribution over the target's vocabulary, and the mass lost.
"""
