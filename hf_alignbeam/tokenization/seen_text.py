"""What a user sees of some tokens, who decodes them without special tokens: it may differ from the bytes of each.

Knows a tokenizer's own decoder. Knows no model, no prompt and no judge.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from hf_alignbeam.tokenization.vocabulary import decode


def seen_bytes(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[bytes | None], ids: Sequence[int]) -> bytes:
    """The text that `tokenizer.decode(ids, skip_special_tokens=True)` shows, but for white space at its ends.

    The decoder joins the parts of words, cleans up white space, and may show half a character as several. Where it shows what
    the tokens' bytes say, these are returned: they hold the white space that decoders drop at the beginning, and end within a
    character where the tokens do.

    Args:
        tokenizer: A tokenizer.
        tokens: Its `token_bytes`.
        ids: The tokens.
    """
    data = decode(tokens, ids)
    written, seen = data.decode(errors="replace"), str(tokenizer.decode(list(ids), skip_special_tokens=True))
    if written.strip() == seen.strip():
        return data
    whitespace = written[: len(written) - len(written.lstrip())]
    return (whitespace + seen.lstrip()).encode(errors="replace")
