"""The anchor following the target's text, and its next-token distribution over the target's vocabulary.

* `state`: One row: its text, the anchor's tokens for it, and the points that the anchor was fed to.
* `cover`: One point of a row's text from which the anchor may continue, and its mass.
* `covering`: The marginal over the anchor's tokenizations of a text, in the target's tokens.
* `foresight`: What a look-ahead will likely ask for, known before the new tokens are fed.
* `follower`: Feeds the anchor: retokenizes each row's text, looks ahead, commits old tokens, goes back.
"""
