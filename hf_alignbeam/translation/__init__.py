"""A distribution over one vocabulary expressed over another.

* `retokenization`: How a target's tokenizer would write what an anchor says: which of its tokens come next, and which texts ...
* `translator`: A distribution over the anchor's vocabulary expressed over the target's, and the mass that is lost on the way.
"""
