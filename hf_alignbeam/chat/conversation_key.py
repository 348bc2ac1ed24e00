"""The key under which a conversation is recorded.

Knows messages. Knows no record.
"""

import hashlib
import json
from collections.abc import Sequence

from hf_alignbeam.chat.conversations import Message


def conversation_key(messages: Sequence[Message]) -> str:
    """The SHA-256 of a conversation, which identifies it without revealing its text."""
    return hashlib.sha256(json.dumps(messages, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
