"""Conversations as chat templates render them: for the target up to its answer, for an anchor and a judge word for word.

Knows templates, only through what they render. Knows no model, no vocabulary map, and no way back from ids (`recovery.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import Message, _alternating, merge_system

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


@dataclass(frozen=True)
class AnswerOpening:
    """What stands between a prompt and its answer.

    Attributes:
        opening: What the template puts after the last question to ask for an answer.
        lead_in: White space that the model itself then writes before the answer's first word.
        reasons: Whether the model writes something else there first: its reasoning.
    """

    opening: bytes
    leading_whitespace: bytes
    reasons: bool


def reply_after(opening: bytes, before_answer: bytes) -> AnswerOpening:
    """How an answer begins after `opening`, where a finished answer has `before_answer` in front of it."""
    if before_answer.startswith(opening):
        leading_whitespace = before_answer[len(opening) :]
        return AnswerOpening(
            opening, b"" if leading_whitespace.strip() else leading_whitespace, reasons=bool(leading_whitespace.strip())
        )
    return AnswerOpening(opening, b"", reasons=unended_reasoning(opening) is not None)


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
    messages = escape_special_tokens(tokenizer, messages)
    if tokenizer.chat_template is None:
        text, leading_whitespace = "\n\n".join(message["content"] for message in messages) + "\n\n", b""
    else:
        text, leading_whitespace = _before_answer(tokenizer, tokens, messages)
    return encode_once(tokenizer, text), leading_whitespace


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


def encode_once(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a rendered text, with exactly one BOS where the tokenizer writes any."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    bos = tokenizer.bos_token_id
    return [bos, *ids] if bos is not None and tokenizer("x").input_ids[:1] == [bos] and ids[:1] != [bos] else ids


def escape_special_tokens(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[Message]:
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


def render_all(tokenizer: PreTrainedTokenizerBase, messages: list[Message], extra: Sequence[Message] = (), **options: Any) -> str:
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


def _before_answer(tokenizer: PreTrainedTokenizerBase, tokens: list[bytes | None], messages: list[Message]) -> tuple[str, bytes]:
    """The rendered text before the next answer (an empty reasoning block included), and the answer's lead-in."""
    asked = render_all(tokenizer, messages, add_generation_prompt=True)
    answered = render_all(tokenizer, messages, [{"role": "assistant", "content": ANSWER}])
    before = answered.rpartition(ANSWER)[0]  # the last one: a user may write the word, too
    bytes_before = raw_text(tokenizer, tokens, tokenizer(answered, add_special_tokens=False).input_ids)
    bytes_before = bytes_before.rpartition(ANSWER.encode())[0]
    bytes_asked = raw_text(tokenizer, tokens, tokenizer(asked, add_special_tokens=False).input_ids)
    reply = reply_after(bytes_asked, bytes_before)
    if not reply.reasons:
        return asked, reply.leading_whitespace
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


def raw_text(tokenizer: PreTrainedTokenizerBase, tokens: list[bytes | None], ids: Sequence[int]) -> bytes:
    """The bytes of ids with special tokens under their names: what the template wrote, as the tokenizer read it."""
    names = special_names(tokenizer)
    return b"".join((tokens[i] if i < len(tokens) else None) or names.get(i, b"") for i in ids)


def special_names(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """By the id of a special token, its name."""
    return {i: token.content.encode() for i, token in tokenizer.added_tokens_decoder.items() if token.special}
