"""Token ids as byte strings.

* `backends`: How each kind of tokenizer is read: the bytes behind its ids, its pieces' names, and text encoded as it goes on.
* `vocabulary`: The bytes behind every token id, and the ids a tokenizer gives to bytes.
"""
