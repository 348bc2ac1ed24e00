"""Settings as others have published them: a guard with one of them is a baseline for ours.

* `published`: of the processor, of the strategy and of the embedding search.

Example:
    >>> AlignBeam(anchor, anchor_tokenizer, tokenizer, judge, **PAPER)
"""

from hf_alignbeam.presets.published import PAPER, PROCESSOR, TSA

__all__ = ["PAPER", "PROCESSOR", "TSA"]
