"""Conversations as messages, and what a prompt asks.

Knows messages of text. Knows no template, no tokenizer and no id."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, str]


Conversation = list[Message] | str


def as_messages(conversation: Conversation) -> list[Message]:
    """A conversation as messages of plain text; a plain string is one user message.

    Text that was given in parts is put together, and the calls of tools stand as text after the words of their message.

    Raises:
        ValueError: It is neither, a message lacks `role` or a textual `content`, or no message says anything.
    """
    if not isinstance(conversation, str | list):
        raise ValueError(f"A conversation must be a string or a list of messages, got {conversation!r}.")
    messages = [{"role": "user", "content": conversation}] if isinstance(conversation, str) else conversation
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"A message of `conversations` must have 'role' and 'content', got {message!r}.")
    texts = [{"role": message["role"], "content": _text_of(message)} for message in messages]
    if not any(message["content"].strip() for message in texts):
        raise ValueError(
            f"A conversation must hold some text, got {conversation!r}. An empty prompt gives the anchor nothing to "
            "read: pass the user's words."
        )
    return texts


def _text_of(message: Mapping[str, Any]) -> str:
    """All that a message says."""
    content, calls = message["content"], message.get("tool_calls") or []
    parts = content if isinstance(content, list) else [] if content is None and calls else [{"text": content}]
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if len(texts) < len(parts):
        raise ValueError(
            f"A message's 'content' must be a string, got {content!r}. Pass its text, or the parts of it that have a 'text': "
            "neither anchor nor judge reads anything else."
        )
    return "\n".join(filter(None, ["".join(texts), *map(_call_text, calls)]))


def _call_text(call: Mapping[str, Any]) -> str:
    called = call.get("function", call)
    arguments = called["arguments"]
    return f"{called['name']} {arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)}"


def conversation_key(messages: Sequence[Message]) -> str:
    """What tells a conversation from others, without its words."""
    return hashlib.sha256(json.dumps(messages, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ParsedPrompt:
    """What a prompt says.

    Attributes:
        messages: The conversation, up to the last question.
        begun: The start of its answer that the prompt already holds, byte for byte.
        lead_in: White space that the model will write before the answer's first word.
    """

    messages: list[Message]
    prefill: bytes
    leading_whitespace: bytes

    def continued(self, written: bytes) -> "ParsedPrompt":
        """The same prompt once the answer has gone on by some text."""
        if not written:
            return self
        return ParsedPrompt(
            self.messages, self.prefill + (written if self.prefill else written.removeprefix(self.leading_whitespace)), b""
        )


def whole_conversation(asked: ParsedPrompt) -> list[Message]:
    """What a prompt says as one conversation, the start of its answer as an answer at the end; a copy."""
    prefill = asked.prefill.decode(errors="replace")
    return [*(dict(message) for message in asked.messages), *([{"role": "assistant", "content": prefill}] if prefill else [])]


def split_prefill(messages: list[Message]) -> ParsedPrompt:
    """What a conversation asks; where it ends in an answer, that is where the target's begins."""
    if messages[-1]["role"] != "assistant":
        return ParsedPrompt(messages, b"", b"")
    if len(messages) == 1:
        raise ValueError("A conversation must hold a question, got an answer alone. Put the user's message before it.")
    return ParsedPrompt(messages[:-1], messages[-1]["content"].encode(), b"")


def _alternating(messages: list[Message]) -> list[Message]:
    """The same words in turns of user and assistant, the user's first."""
    instructions = [message for message in messages if message["role"] in ("system", "developer")]
    others = [message for message in messages if message not in instructions]
    turns: list[Message] = []
    for message in [*instructions, *others]:
        role = "assistant" if message["role"] == "assistant" else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1] = {"role": role, "content": f"{turns[-1]['content']}\n\n{message['content']}"}
        else:
            turns.append({"role": role, "content": message["content"]})
    return turns


def merge_system(messages: list[Message]) -> list[Message]:
    """The same conversation for a template without a system role: its words stand before the first question."""
    if len(messages) < 2 or messages[0]["role"] != "system":
        return messages
    first = {**messages[1], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]


def checked_conversations(conversations: Sequence[Conversation] | None) -> list[list[Message]] | None:
    """What a user gave as the prompts' conversations, as messages.

    Raises:
        ValueError: It is no sequence of conversations.
    """
    return None if conversations is None else some_conversations(conversations)


def some_conversations(conversations: Sequence[Conversation]) -> list[list[Message]]:
    """The same where there have to be some."""
    if isinstance(conversations, str) or not conversations:
        raise ValueError(
            f"`conversations` must hold one conversation a prompt, got {conversations!r}. Put a single one in a list."
        )
    return [as_messages(c) for c in conversations]
