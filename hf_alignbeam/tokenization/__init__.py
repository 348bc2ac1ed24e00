"""Token ids as byte strings.

* `backends`: Reads each kind of tokenizer: the bytes of its tokens, its pieces' names, its encoder.
* `vocabulary`: A tokenizer as byte strings with ids: ids to bytes, and bytes to ids.
* `losses`: The texts that a tokenizer cannot write or does not keep.
* `seen_text`: What a user sees of some tokens.
"""
