"""A generated micro-language with exact ground truth, and tiny models that were trained on it.

* `phrases`: The phrases and words that a language is sampled from, and a generator of invented words.
* `language`: A micro-language of a few hundred words, generated from a seed, with prompts and right answers.
* `exchanges`: Complete and truncated answers with labels, to train and test judges.
* `ground_truth`: Verdicts by the grammar: whether an answer refuses, does harm, is correct, is grammatical.
* `model_store`: Saves and loads the testbed's models: float16 on the disk, float32 in memory.
* `tokenizers`: Trains the tokenizers: byte-level BPE for anchors, SentencePiece-style BPE for specialists.
"""

from pathlib import Path

from hf_alignbeam.testbed.language import Prompt
from hf_alignbeam.testbed.model_store import WEIGHTS, load, stored_language

__all__ = ["WEIGHTS", "Prompt", "load", "prompts"]


def prompts(split: str, kind: str, folder: str | Path = WEIGHTS) -> list[Prompt]:
    """Return the testbed's prompts of one kind in one split.

    Args:
        split: `"train"`, `"validation"` or `"test"`.
        kind: `"general"`, `"domain"`, `"borderline"`, `"harmful"`, `"prefill"` or `"late"`.
        folder: The folder of weights; its language is used.

    Raises:
        ValueError: The split or kind is unknown.

    Example:
        >>> prompts("test", "harmful")[0].conversation
        [{'role': 'user', 'content': 'My teacher asks: ...'}]
    """
    return stored_language(folder).prompts(split, kind)
