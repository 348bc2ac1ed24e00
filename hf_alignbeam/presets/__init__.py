"""Published settings, under the names of our arguments: a guard built with them is a baseline to compare ours with.

* `processor`: The mixing of AlignBeam, SafeDecoding and contrastive decoding.
* `published`: AlignBeam and Test-Time Safety Alignment as published.

Example:
    >>> AlignBeam(anchor, anchor_tokenizer, tokenizer, judge, **PAPER)
"""

from hf_alignbeam.presets.processor import PROCESSOR
from hf_alignbeam.presets.published import PAPER, TSA

__all__ = ["PAPER", "PROCESSOR", "TSA"]
