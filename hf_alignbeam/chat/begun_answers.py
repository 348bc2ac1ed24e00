"""Prompts whose answer has begun: continued by more of it, and as messages.

Knows messages and bytes. Knows no template and no token id.
"""

from dataclasses import replace

from hf_alignbeam.chat.conversations import Message, ParsedPrompt


def continued(prompt: ParsedPrompt, text: bytes) -> ParsedPrompt:
    """A prompt with the next text of its answer moved into its prefill."""
    if not text:
        return prompt
    added = text if prompt.prefill else text.removeprefix(prompt.leading_whitespace)
    return replace(prompt, prefill=prompt.prefill + added, leading_whitespace=b"")


def messages_with_prefill(prompt: ParsedPrompt) -> list[Message]:
    """A copy of a prompt's messages, with the prefill as an assistant message at the end if there is one."""
    prefill = prompt.prefill.decode(errors="replace")
    messages = [dict(message) for message in prompt.messages]
    return [*messages, {"role": "assistant", "content": prefill}] if prefill else messages
