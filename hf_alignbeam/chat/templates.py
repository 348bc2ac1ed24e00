"""Conversations rendered through chat templates for an anchor or a judge, without losing a word.

Knows templates, and only by what they render. Knows no model and no translation; parsing is `template_parser`'s.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from hf_alignbeam.chat.conversations import Message, alternate_roles, merge_system
from hf_alignbeam.tokenization.vocabulary import decode

#: Contents that no template writes itself. What a template writes around messages is learned by rendering these.
_PLACEHOLDERS = ("Qzxquestion", "Qzxanswer", "Qzxsecond", "Qzxsystem", "Qzxtool")
#: The markers that open and close reasoning in various models.
REASONING_MARKERS = {
    "<think>": "</think>",
    "<thought>": "</thought>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
}


@dataclass(frozen=True)
class AnswerOpening:
    """The text between a prompt's last message and the first word of its answer.

    Attributes:
        opening: What the template writes after the last message to open an answer.
        leading_whitespace: White space that the model itself writes next, before the first word of the answer.
        reasoning_first: Whether the model writes its reasoning there before the answer.
    """

    opening: bytes
    leading_whitespace: bytes
    reasoning_first: bool


def answer_opening(opening: bytes, before_answer: bytes) -> AnswerOpening:
    """The opening of an answer, given what the template writes before an answer that is finished."""
    if not before_answer.startswith(opening):
        return AnswerOpening(opening, b"", reasoning_first=missing_reasoning_end(opening) is not None)
    added = before_answer[len(opening) :]
    if added.strip():
        return AnswerOpening(opening, b"", reasoning_first=True)
    return AnswerOpening(opening, added, reasoning_first=False)


def missing_reasoning_end(text: bytes) -> str | None:
    """The marker that would close the reasoning left open in a text; None where no reasoning is open."""
    return next((end for begin, end in REASONING_MARKERS.items() if text.count(begin.encode()) > text.count(end.encode())), None)


def leading_reasoning_marker(text: bytes) -> str | None:
    """The marker that opens reasoning at the start of an answer; None where the answer starts otherwise."""
    return next((begin for begin in REASONING_MARKERS if text.lstrip().startswith(begin.encode())), None)


def chat_templates(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """A tokenizer's chat templates; of several by name (Command-R, Hermes 3), the default one first."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        return [template[name] for name in sorted(template, key=lambda name: (name != "default", name != "tool_use", name))]
    return [template] if template else []


def default_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template in which conversations are rendered; None where the tokenizer has none."""
    return next(iter(chat_templates(tokenizer)), None)


def check_template(template: object, name: str = "template") -> None:
    """Raise ValueError, by the argument's name, unless a template is None, a callable, or a text that Jinja parses."""
    try:
        _ = template is None or callable(template) or render_jinja_template([[]], chat_template=cast(str, template))
    except Exception as error:  # of a text, rendering nothing may raise anything
        if not isinstance(template, str) or type(error).__name__ in ("TemplateSyntaxError", "TemplateAssertionError"):
            raise ValueError(
                f"`{name}` must be a Jinja template or a callable from the prompt's text to the conversation, got "
                f"{template!r:.60} ({str(error).rstrip('.')}). Leave it out for the tokenizer's own chat template."
            ) from error


def placeholders(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[bytes | None]) -> tuple[str, ...]:
    """Contents for a question, an answer, a second message, a system message and a tool's, that the tokenizer keeps.

    A tokenizer of few characters gets words of two of them.
    """

    def keeps(words: Sequence[str]) -> bool:
        written = decode(tokens, tokenizer(" ".join(words), add_special_tokens=False).input_ids)
        return written.split() == [word.encode() for word in words]

    if keeps(_PLACEHOLDERS):
        return _PLACEHOLDERS
    pieces = (token.decode(errors="ignore") for token in tokens if token and len(token) <= 4)
    characters = sorted({piece for piece in pieces if len(piece) == 1 and piece.isalnum()}, key=lambda c: (not c.isalpha(), c))
    kept = [character for character in characters if keeps([character * 9])][:2]
    words = tuple(kept[0] + kept[-1] * (9 + n) + kept[0] for n in range(len(_PLACEHOLDERS))) if len(kept) == 2 else ()
    return words if words and keeps(words) else _PLACEHOLDERS


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, tokens: list[bytes | None], messages: list[Message]
) -> tuple[list[int], bytes]:
    """Encode a conversation up to its next answer for an anchor or a judge, with exactly one BOS.

    Args:
        tokenizer: The anchor's or the judge's tokenizer. Without a chat template, it reads the messages' plain text.
        tokens: Its `token_bytes`.
        messages: The conversation, whose last message is not the assistant's.

    Returns:
        The ids, and the white space with which the answer begins.
    """
    messages = escape_special_tokens(tokenizer, messages)
    if default_template(tokenizer) is None:
        text, leading_whitespace = "\n\n".join(message["content"] for message in messages) + "\n\n", b""
    else:
        text, leading_whitespace = render_to_answer(tokenizer, tokens, messages)
    return encode_with_one_bos(tokenizer, text), leading_whitespace


def encode_with_one_bos(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a rendered text, with exactly one BOS if the tokenizer writes any."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    bos = tokenizer.bos_token_id
    return [bos, *ids] if bos is not None and tokenizer("x").input_ids[:1] == [bos] and ids[:1] != [bos] else ids


def escape_special_tokens(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[Message]:
    """Escape the markup of a template and its tokenizer in messages: a zero-width space splits each occurrence.

    The target may read such markup as plain text; an anchor or a judge must not read it as the end of a turn, or drop the
    text that it marks as reasoning.
    """
    template = "".join(chat_templates(tokenizer))
    added = [(token.content, token.special) for token in tokenizer.added_tokens_decoder.values()]
    names = [name for name, special in added if len(name) > 1 and (special or (name in template and not name[0].isalnum()))]
    names += [*REASONING_MARKERS, *REASONING_MARKERS.values()]
    ends = {first: "|".join(re.escape(name[1:]) for name in names if name[0] == first) for first in {name[0] for name in names}}
    pattern = re.compile("|".join(f"{re.escape(first)}(?={others})" for first, others in ends.items()))
    return [{**message, "content": escape_matches(pattern, message["content"])} for message in messages]


def escape_matches(pattern: re.Pattern[str], text: str) -> str:
    """Insert a zero-width space after the first character of each match. Matches are found as if there were none yet.

    Different texts stay different, as the places do not depend on the zero-width spaces that a text has already.
    """
    starts = {match.start() for match in pattern.finditer(text.replace("\u200b", ""))}
    if not starts:
        return text
    first, *others = re.findall("[^\u200b]\u200b*", text)
    leading = text[: text.index(first)]
    return leading + "".join(char + "\u200b" * (n in starts) for n, char in enumerate([first, *others]))


def render_all(tokenizer: PreTrainedTokenizerBase, messages: list[Message], extra: Sequence[Message] = (), **options: Any) -> str:
    """Render a conversation through an anchor's or a judge's chat template without losing a word.

    A template may refuse roles and orders of messages that it does not know, or drop them silently. It then gets the system
    message merged into the first user message, or as a last resort alternating turns of user and assistant.

    Args:
        tokenizer: The anchor's or the judge's tokenizer.
        messages: The conversation.
        extra: Messages to append unchanged.
        options: Options of the template.

    Raises:
        ValueError: The template renders no form of the conversation completely.
    """
    for variant in (messages, merge_system(messages), alternate_roles(messages)):
        text = render_or_none(tokenizer, [*variant, *extra], enable_thinking=False, **options)
        if text is not None and all(message["content"].strip() in text for message in variant):
            return text
    roles = ", ".join(str(message["role"]) for message in messages)  # no contents: they may be what a judge has not passed
    raise ValueError(
        f"The chat template must render the whole conversation, but refuses or leaves out a part of one with the roles {roles}. "
        "Pass `conversations` with the roles and the order that it knows."
    )


def render_or_none(tokenizer: PreTrainedTokenizerBase, messages: list[Message], **options: Any) -> str | None:
    """A conversation rendered through a chat template; None where the template refuses it (an unknown role, say)."""
    options.setdefault("chat_template", default_template(tokenizer))
    try:
        return cast(str, tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:
        if not is_template_error(error):
            raise
        return None


def bytes_with_special_tokens(tokenizer: PreTrainedTokenizerBase, tokens: list[bytes | None], ids: Sequence[int]) -> bytes:
    """The bytes of ids, special tokens written by name: the rendered text as the tokenizer read it."""
    names = special_token_names(tokenizer)
    return b"".join((tokens[i] if i < len(tokens) else None) or names.get(i, b"") for i in ids)


def special_token_names(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """The name of each special token, by its id."""
    return {i: token.content.encode() for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def render_to_answer(
    tokenizer: PreTrainedTokenizerBase, tokens: list[bytes | None], messages: list[Message]
) -> tuple[str, bytes]:
    """The rendered text before the next answer (an empty reasoning block included), and the answer's leading white space."""
    prompt = render_all(tokenizer, messages, add_generation_prompt=True)
    answer = placeholders(tokenizer, tokens)[1]
    answered = render_all(tokenizer, messages, [{"role": "assistant", "content": answer}])
    before = answered.rpartition(answer)[0]  # the last one: a user may write the placeholder, too
    answered_bytes = bytes_with_special_tokens(tokenizer, tokens, tokenizer(answered, add_special_tokens=False).input_ids)
    before_bytes = answered_bytes.rpartition(answer.encode())[0]
    prompt_bytes = bytes_with_special_tokens(tokenizer, tokens, tokenizer(prompt, add_special_tokens=False).input_ids)
    opening = answer_opening(prompt_bytes, before_bytes)
    if not opening.reasoning_first:
        return prompt, opening.leading_whitespace
    if not before_bytes.startswith(prompt_bytes):  # the template drops the reasoning of a finished answer
        return f"{prompt.rstrip()}\n\n{missing_reasoning_end(prompt_bytes)}\n\n", b""
    shown = before.rstrip()
    return shown, before[len(shown) :].encode()


def is_template_error(error: Exception) -> bool:
    """Whether jinja2 raised it, recognized by name: the core imports nothing that transformers does not promise to bring."""
    return type(error).__module__.split(".")[0] == "jinja2"
