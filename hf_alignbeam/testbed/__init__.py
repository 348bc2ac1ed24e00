"""The tiny world: a generated micro-language with exact ground truth, and models trained on it."""

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
