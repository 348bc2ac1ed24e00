"""Conversations as lists of messages, and prompts parsed into messages and the start of an answer.

Knows messages of text. Knows no template, no tokenizer and no token id.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_alignbeam.utils.checks import check_utf8

Message = dict[str, str]
Conversation = list[Message] | str


def as_messages(conversation: Conversation) -> list[Message]:
    """Convert a conversation to messages of plain text; a string becomes one user message.

    Content given in parts is joined, and tool calls are appended to their message's content as text.

    Raises:
        ValueError: The conversation is neither a string nor a list, a message lacks a textual `role` or `content`, its text
            holds a lone surrogate, or all messages are blank.
    """
    if not isinstance(conversation, str | list):
        raise ValueError(f"A conversation must be a string or a list of messages, got {conversation!r}.")
    messages = [{"role": "user", "content": conversation}] if isinstance(conversation, str) else conversation
    for message in messages:
        has_role = isinstance(message, dict) and isinstance(message.get("role"), str)
        if not has_role or not ("content" in message or message.get("tool_calls")):
            raise ValueError(f"A message of `conversations` must have 'role' and 'content' (or 'tool_calls'), got {message!r}.")
    plain = [{"role": message["role"], "content": check_utf8("A message", _message_text(message))} for message in messages]
    if not any(message["content"].strip() for message in plain):
        raise ValueError(
            f"A conversation must hold some text, got {conversation!r}. An empty prompt gives the anchor nothing to "
            "read: pass the user's words."
        )
    return plain


def as_message_lists(conversations: Iterable[Conversation]) -> list[list[Message]]:
    """Convert the conversations of a batch, as `as_messages` does.

    Raises:
        ValueError: `conversations` is no collection, a single string or empty, or one of them is invalid.
    """
    rows = [] if isinstance(conversations, str | Mapping) or not isinstance(conversations, Iterable) else list(conversations)
    if not rows:
        raise ValueError(f"`conversations` must hold one conversation a prompt, got {conversations!r}. Put one in a list.")
    return [as_messages(conversation) for conversation in rows]


def _message_text(message: Mapping[str, Any]) -> str:
    """A message's content and its tool calls as text."""
    content, calls = message.get("content"), message.get("tool_calls") or []
    parts = content if isinstance(content, list) else [] if content is None and calls else [{"text": content}]
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if len(texts) < len(parts):
        raise ValueError(
            f"A message's 'content' must be a string, got {content!r}. Pass its text, or only the parts that have a 'text': "
            "neither anchor nor judge reads anything else."
        )
    return "\n".join(filter(None, ["".join(texts), *map(_tool_call_text, calls)]))


def _tool_call_text(call: Mapping[str, Any]) -> str:
    """A tool call as text; transformers allows one without arguments."""
    function = call.get("function") or call
    if not isinstance(function.get("name"), str):
        raise ValueError(f"A call of 'tool_calls' must have the 'name' of its function, got {call!r}.")
    arguments = function.get("arguments")
    if arguments is None:
        return function["name"]
    return f"{function['name']} {arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)}"


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt as a conversation and the start of its answer.

    Attributes:
        messages: The conversation up to the message to be answered.
        prefill: The start of the answer that the prompt already holds, byte for byte.
        leading_whitespace: White space that the model will write before the first word of the answer.
    """

    messages: list[Message]
    prefill: bytes
    leading_whitespace: bytes


def prompt_from_messages(messages: list[Message]) -> ParsedPrompt:
    """A conversation as a prompt; an assistant message at its end becomes the prefill."""
    if messages[-1]["role"] != "assistant":
        return ParsedPrompt(messages, b"", b"")
    if len(messages) == 1:
        raise ValueError("A conversation must hold a user message, got an assistant's alone. Put the user's message before it.")
    return ParsedPrompt(messages[:-1], messages[-1]["content"].encode(), b"")


def merge_system(messages: list[Message]) -> list[Message]:
    """Move a system message into the first user message, for a template without a system role."""
    if len(messages) < 2 or messages[0]["role"] != "system":
        return messages
    first = {**messages[1], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]


def alternate_roles(messages: list[Message]) -> list[Message]:
    """Merge messages into alternating user and assistant turns, starting with the user.

    System and developer messages come first; tool messages count as the user's.
    """
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
