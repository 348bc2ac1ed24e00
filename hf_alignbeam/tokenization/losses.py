"""The texts that a tokenizer cannot write or does not keep.

Knows one vocabulary. Does not know what the texts are needed for.
"""

from hf_alignbeam.tokenization.backends import WORD_START
from hf_alignbeam.tokenization.vocabulary import Vocabulary

#: The bytes that occur in UTF-8 text.
UTF8_BYTES = [byte for byte in range(256) if byte not in (0xC0, 0xC1) and byte < 0xF5]

#: Texts that show whether a tokenizer normalizes its input, by the name of the loss.
LOSS_PROBES = {
    "white space is not kept": " a  b\n\n\tc \n",
    "composed characters are rewritten (NFC)": "e\u0301",
    "compatible characters are rewritten (NFKC)": "\ufb01 \u00bd \uff21",
    "case is not kept": "AbC",
    f"a literal {WORD_START} becomes a space": f"a{WORD_START}b",
}


def losses(vocabulary: Vocabulary) -> tuple[str, ...]:
    """The texts that a tokenizer cannot write or does not keep, by name; empty for one that keeps every text."""
    missing = [byte for byte in UTF8_BYTES if bytes([byte]) not in vocabulary.by_bytes]
    names = []
    if len(missing) > len(UTF8_BYTES) // 2:
        names.append("no byte fallback: characters without a piece are lost")
    elif missing:
        names.append(f"no token for {len(missing)} bytes: {', '.join(f'0x{byte:02X}' for byte in missing)}")
    probes = {kind: text.encode() for kind, text in LOSS_PROBES.items()}
    return (*names, *(kind for kind, text in probes.items() if vocabulary.decode(vocabulary.own_ids(text)) != text))
