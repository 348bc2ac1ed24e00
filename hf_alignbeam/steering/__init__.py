"""The anchor mixed into a target's scores: `AnchorLogitsProcessor`.

* `generate_call`: One call of `generate` as a processor sees it: which rows go on from which, and which of them are steered.
* `generate_loops`: Which loop of `generate` is asking, and the call that each loop of a thread is in.
* `ledger`: What steering and judging have cost.
* `mixing`: Rules that combine the target's next-token distribution with the anchor's translated one; pure tensor functions.
* `settings`: SteeringSettings: how an anchor is mixed in, the same for the processor and for the strategy.
* `anchor_steering`: How an anchor steers: the settings, checked once, and what they make of a target's distribution at one p...
* `processor`: AnchorLogitsProcessor: the logits processor that steers the first tokens of an answer towards a safe anchor.
"""
