"""Running an anchor or a judge: caches with branches, texts read on, the base under an adapter.

* `adapters`: The model under a target's adapters: the same weights, with the adapters off for the length of a block.
* `engines`: How an anchor is run: from a key-value cache wherever its layers keep one that can be masked, else over the whol...
* `branching_cache`: One batch of anchor contexts in which rows can grow, branch and abandon tokens, each fed only what it ha...
* `incremental`: Texts that a model reads again and again as they grow, each from where it last differed.
"""
