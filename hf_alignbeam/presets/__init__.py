"""Published settings, under the names of our arguments: a guard built with them is a baseline to compare ours with.

* `published`: AlignBeam, SafeDecoding, contrastive decoding and Test-Time Safety Alignment as published.

Example:
    >>> AlignBeam(anchor, anchor_tokenizer, tokenizer, judge, **PAPER)
"""

from hf_alignbeam.presets.published import PAPER, PROCESSOR, TSA

__all__ = ["PAPER", "PROCESSOR", "TSA"]
