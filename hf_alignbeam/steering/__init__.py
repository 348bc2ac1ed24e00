"""Steering: mix an anchor into a target's scores while `generate` runs. `AnchorLogitsProcessor` is the public class.

* `mixing`: The rules that mix the target's next-token distribution with the anchor's.
* `settings`: SteeringSettings: how an anchor is mixed in, with defaults and ranges.
* `ledger`: Ledger: what steering and judging have cost.
* `generate_call`: One call of `generate`: which row continues which, and which are steered.
* `generate_loops`: Which loop of `generate` is calling a processor, and the call of each loop.
* `anchor_steering`: AnchorSteering: an anchor that is checked and ready to steer one target.
* `processor`: AnchorLogitsProcessor: the logits processor that users hand to `generate`.
* `refused_arguments`: Arguments of `generate` that a decoding strategy cannot honor.
"""
