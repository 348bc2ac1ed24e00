"""The tiny world: a generated micro-language with exact ground truth, and models trained on it.

* `phrases`: The pools a language is drawn from: English frames, everyday words, and a maker of invented ones.
* `language`: A micro-language of a few hundred words, generated from a seed: what can be asked, and every right answer.
* `exchanges`: What judges are taught and measured on: questions with whole or broken-off answers, and whether these do harm.
* `ground_truth`: Ground truth by the grammar: whether an answer refuses, harms, is right, is a sentence of the language.
* `model_store`: Where the testbed's weights lie, and how they are written and read: float16 on disk, float32 in memory.
* `tokenizers`: The testbed's tokenizers: byte-level BPE for anchors, SentencePiece-style BPE for specialists.
"""

from pathlib import Path

from hf_alignbeam.testbed.language import Prompt
from hf_alignbeam.testbed.model_store import WEIGHTS, load, stored_language

__all__ = ["WEIGHTS", "Prompt", "load", "prompts"]


def prompts(split: str, kind: str, folder: str | Path = WEIGHTS) -> list[Prompt]:
    """The testbed's prompts of one kind in one split.

    Args:
        split: `"train"`, `"validation"` or `"test"`.
        kind: `"general"`, `"domain"`, `"borderline"`, `"harmful"`, `"prefill"` or `"late"`.
        folder: The folder of weights whose language is meant.

    Raises:
        ValueError: No such split or kind.

    Example:
        >>> prompts("test", "harmful")[0].conversation
        [{'role': 'user', 'content': 'My teacher asks: ...'}]
    """
    return stored_language(folder).prompts(split, kind)
