"""Conversations as chat templates render them: for the target up to its answer, for an anchor and a judge word for word.

Knows templates, only through what they render. Knows no model, no vocabulary map, and no way back from ids (`recovery.py`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
Conversation = list[Message] | str

#: Words that no template writes itself, by which it is seen what it writes around them.
QUESTION, ANSWER = "Qzxquestion", "Qzxanswer"
#: What opens and closes reasoning, as models spell it.
REASONING = {
    "<think>": "</think>",
    "<thought>": "</thought>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
}


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
class Reply:
    """What stands between a prompt and its answer.

    Attributes:
        opening: What the template puts after the last question to ask for an answer.
        lead_in: White space that the model itself then writes before the answer's first word.
        reasons: Whether the model writes something else there first: its reasoning.
    """

    opening: bytes
    lead_in: bytes
    reasons: bool


@dataclass(frozen=True)
class Asked:
    """What a prompt says.

    Attributes:
        messages: The conversation, up to the last question.
        begun: The start of its answer that the prompt already holds, byte for byte.
        lead_in: White space that the model will write before the answer's first word.
    """

    messages: list[Message]
    begun: bytes
    lead_in: bytes

    def continued(self, written: bytes) -> "Asked":
        """The same prompt once the answer has gone on by some text."""
        if not written:
            return self
        return Asked(self.messages, self.begun + (written if self.begun else written.removeprefix(self.lead_in)), b"")


def whole_conversation(asked: Asked) -> list[Message]:
    """What a prompt says as one conversation, the start of its answer as an answer at the end; a copy."""
    begun = asked.begun.decode(errors="replace")
    return [*(dict(message) for message in asked.messages), *([{"role": "assistant", "content": begun}] if begun else [])]


def reply_after(opening: bytes, before_answer: bytes) -> Reply:
    """How an answer begins after `opening`, where a finished answer has `before_answer` in front of it."""
    if before_answer.startswith(opening):
        lead_in = before_answer[len(opening) :]
        return Reply(opening, b"" if lead_in.strip() else lead_in, reasons=bool(lead_in.strip()))
    return Reply(opening, b"", reasons=unended_reasoning(opening) is not None)


def unended_reasoning(text: bytes) -> str | None:
    """What would end the reasoning that a text has begun; None where it has not, or has ended it."""
    return next((end for begin, end in REASONING.items() if text.count(begin.encode()) > text.count(end.encode())), None)


def begins_reasoning(written: bytes) -> str | None:
    """What opens the reasoning that an answer begins with; None where there is none."""
    return next((begin for begin in REASONING if written.lstrip().startswith(begin.encode())), None)


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, tokens: list[bytes | None], messages: list[Message]
) -> tuple[list[int], bytes]:
    """The ids of a conversation up to its next answer, through the tokenizer's own template, with exactly one BOS.

    Args:
        tokenizer: The anchor's tokenizer. Without a template, the messages' plain text is all it reads.
        tokens: Its `token_bytes`.
        messages: The conversation, its last message not an assistant's.

    Returns:
        The ids, and the white space with which the answer begins.
    """
    messages = defused(tokenizer, messages)
    if tokenizer.chat_template is None:
        text, lead_in = "\n\n".join(message["content"] for message in messages) + "\n\n", b""
    else:
        text, lead_in = _before_answer(tokenizer, tokens, messages)
    return encode_once(tokenizer, text), lead_in


def target_text(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> str:
    """A conversation as the target is to read it, up to its next answer; one that ends in an answer is to be continued."""
    if tokenizer.chat_template is None:
        return "\n\n".join(message["content"] for message in messages)
    prefilled = messages[-1]["role"] == "assistant"
    text = tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=not prefilled,
        continue_final_message=prefilled,
        enable_thinking=False,
    )
    return str(text)


def text_after(tokenizer: PreTrainedTokenizerBase, tokens: list[bytes | None], messages: list[Message]) -> bytes | None:
    """What stands after the last user's words where the target reads a conversation, the start of an answer included.

    None where there are no such words, or where the template refuses the conversation.
    """
    last = next((n for n in reversed(range(len(messages))) if messages[n]["role"] == "user"), None)
    if last is None:
        return None
    marked = [*messages[:last], {"role": "user", "content": QUESTION}, *messages[last + 1 :]]
    try:
        ids = encode_once(tokenizer, target_text(tokenizer, marked))
    except Exception as error:
        if type(error).__module__.split(".")[0] != "jinja2":
            raise
        return None
    _, marker, after = raw_text(tokenizer, tokens, ids).rpartition(QUESTION.encode())
    return after if marker else None


def asked_of(messages: list[Message]) -> Asked:
    """What a conversation asks; where it ends in an answer, that is where the target's begins."""
    if messages[-1]["role"] != "assistant":
        return Asked(messages, b"", b"")
    if len(messages) == 1:
        raise ValueError("A conversation must hold a question, got an answer alone. Put the user's message before it.")
    return Asked(messages[:-1], messages[-1]["content"].encode(), b"")


def encode_once(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a rendered text, with exactly one BOS where the tokenizer writes any."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    bos = tokenizer.bos_token_id
    return [bos, *ids] if bos is not None and tokenizer("x").input_ids[:1] == [bos] and ids[:1] != [bos] else ids


def defused(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[Message]:
    """The same messages, words in them that a template or a tokenizer takes for its own broken up so that they stay words.

    The target may read them as plain text; an anchor or a judge must not read them as the end of a turn, nor leave out what
    they take for reasoning.
    """
    written = str(tokenizer.chat_template or "")
    added = [(token.content, token.special) for token in tokenizer.added_tokens_decoder.values()]
    names = [name for name, special in added if len(name) > 1 and (special or (name in written and not name[0].isalnum()))]
    names = sorted({*names, *REASONING, *REASONING.values()}, key=len, reverse=True)

    def broken_up(content: str) -> str:
        for name in names:
            content = content.replace(name, f"{name[0]}\u200b{name[1:]}")
        return content

    return [{**message, "content": broken_up(message["content"])} for message in messages]


def whole_text(tokenizer: PreTrainedTokenizerBase, messages: list[Message], extra: Sequence[Message] = (), **options: Any) -> str:
    """A conversation as its reader's template renders it, no word of it left out.

    Templates refuse roles and orders that they do not know, or leave them out without a word: what such a one is given is the
    system's words in the first question, then the words of all but the assistant as the user's.

    Args:
        tokenizer: The anchor's or the judge's.
        messages: What is to be read.
        extra: Messages that follow, as they are.
        options: What the template gets.

    Raises:
        ValueError: There is no way to put all of it before this template.
    """
    for attempt in (messages, merge_system(messages), _alternating(messages)):
        text = rendered(tokenizer, [*attempt, *extra], enable_thinking=False, **options)
        if text is not None and all(message["content"].strip() in text for message in attempt):
            return text
    raise ValueError(
        f"The chat template must render the whole conversation, but refuses or leaves out a part of {messages!r}. Pass "
        "`conversations` with the roles and the order that it knows."
    )


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


def _before_answer(tokenizer: PreTrainedTokenizerBase, tokens: list[bytes | None], messages: list[Message]) -> tuple[str, bytes]:
    """The rendered text before the next answer (an empty reasoning block included), and the answer's lead-in."""
    asked = whole_text(tokenizer, messages, add_generation_prompt=True)
    answered = whole_text(tokenizer, messages, [{"role": "assistant", "content": ANSWER}])
    before = answered.rpartition(ANSWER)[0]  # the last one: a user may write the word, too
    bytes_before = raw_text(tokenizer, tokens, tokenizer(answered, add_special_tokens=False).input_ids)
    bytes_before = bytes_before.rpartition(ANSWER.encode())[0]
    bytes_asked = raw_text(tokenizer, tokens, tokenizer(asked, add_special_tokens=False).input_ids)
    reply = reply_after(bytes_asked, bytes_before)
    if not reply.reasons:
        return asked, reply.lead_in
    if not bytes_before.startswith(bytes_asked):  # reasoning that is not shown before a finished answer
        return f"{asked.rstrip()}\n\n{unended_reasoning(bytes_asked)}\n\n", b""
    shown = before.rstrip()
    return shown, before[len(shown) :].encode()


def rendered(tokenizer: PreTrainedTokenizerBase, messages: list[Message], **options: Any) -> str | None:
    """A conversation through a chat template; None where the template refuses it (an unknown role, say)."""
    try:
        return cast(str, tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:
        # jinja2.TemplateError by name: the core imports nothing that transformers does not promise to bring
        if type(error).__module__.split(".")[0] != "jinja2":
            raise
        return None


def merge_system(messages: list[Message]) -> list[Message]:
    """The same conversation for a template without a system role: its words stand before the first question."""
    if len(messages) < 2 or messages[0]["role"] != "system":
        return messages
    first = {**messages[1], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]


def raw_text(tokenizer: PreTrainedTokenizerBase, tokens: list[bytes | None], ids: Sequence[int]) -> bytes:
    """The bytes of ids with special tokens under their names: what the template wrote, as the tokenizer read it."""
    names = special_names(tokenizer)
    return b"".join((tokens[i] if i < len(tokens) else None) or names.get(i, b"") for i in ids)


def special_names(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """By the id of a special token, its name."""
    return {i: token.content.encode() for i, token in tokenizer.added_tokens_decoder.items() if token.special}
