"""Conversations across chat templates: recover them from the target's ids, render them for the anchor.

Knows templates, only through what they render around sentinel messages. Knows no model and no vocabulary map.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from .vocab import token_bytes

Message = dict[str, str]
Conversation = list[Message] | str

_QUESTION, _ANSWER, _SECOND, _SYSTEM = "Qzxquestion", "Qzxanswer", "Qzxsecond", "Qzxsystem"


def as_messages(conversation: Conversation) -> list[Message]:
    """A conversation as messages; a plain string is one user message.

    Raises:
        ValueError: It is neither, a message lacks `role` or a textual `content`, or no message says anything.
    """
    if not isinstance(conversation, str | list):
        raise ValueError(f"A conversation must be a string or a list of messages, got {conversation!r}.")
    messages = [{"role": "user", "content": conversation}] if isinstance(conversation, str) else list(conversation)
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"A message of `conversations` must have 'role' and 'content', got {message!r}.")
        if not isinstance(message["content"], str):
            raise ValueError(
                f"A message's 'content' must be a string, got {message['content']!r}. Pass the text of its parts as one."
            )
    if not any(message["content"].strip() for message in messages):
        raise ValueError(
            f"A conversation must hold some text, got {conversation!r}. An empty prompt gives the anchor nothing to "
            "read: pass the user's words."
        )
    return [dict(message) for message in messages]  # what a caller does with theirs is not to be seen here


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
class ChatFormat:
    """A chat template as text around messages, learned by rendering it once around sentinels.

    Attributes:
        start: What stands before the first question.
        around_system: What stands before and after a system message, up to the first question; None without that role.
        replies: The ways a question can be followed by an answer, longest opening first.
        between: What stands between an answer and the next question.
        eos_ids: The special ids that end an answer.
    """

    start: bytes
    around_system: tuple[bytes, bytes] | None
    replies: tuple[Reply, ...]
    between: bytes
    eos_ids: frozenset[int]

    def parse(self, text: bytes) -> tuple[list[Message], bytes, Reply] | None:
        """The conversation that renders to `text`.

        Returns:
            The messages, what stands after the last opening, and the reply it opens; None where the text does not
            follow the template.
        """
        messages, rest = self._beginning(text)
        while rest is not None:
            found = [(rest.find(reply.opening), reply) for reply in self.replies]
            found = [(at, reply) for at, reply in found if at >= 0]
            if not found:
                return None
            at, reply = min(found, key=lambda pair: (pair[0], -len(pair[1].opening)))
            messages.append({"role": "user", "content": _readable(rest[:at])})
            rest = rest[at + len(reply.opening) :]
            answer, between, rest_after = rest.partition(self.between) if self.between else (rest, b"", b"")
            if not between:
                return messages, rest, reply
            messages.append({"role": "assistant", "content": _readable(answer.removeprefix(reply.lead_in))})
            rest = rest_after
        return None

    def _beginning(self, text: bytes) -> tuple[list[Message], bytes | None]:
        """The system message, if there is one, and the text from the first question on."""
        before, after = self.around_system or (b"", b"")
        starts = [start for start in (self.start, before) if text.startswith(start)]
        longest = max(starts, key=len, default=None)
        if longest is None:
            return [], None
        if longest == self.start:
            return [], text[len(longest) :]
        system, _, rest = text[len(longest) :].partition(after)
        return [{"role": "system", "content": _readable(system)}], rest


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


class ChatReader:
    """Recovers conversations from a tokenizer's prompt ids, and knows how its answers begin and end.

    Args:
        tokenizer: The target's tokenizer.
        template: Where the tokenizer has no chat template, or another one was used: a Jinja template, or a callable
            that takes the prompt's text and returns the conversation.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | Callable[[str], Conversation] | None = None,
    ):
        self._tokenizer = tokenizer
        self._tokens = token_bytes(tokenizer)
        self._recover = template if callable(template) else None
        jinja = template if isinstance(template, str) else tokenizer.chat_template
        self.format = None if jinja is None else learn_format(tokenizer, self._tokens, jinja)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends an answer: the tokenizer's own, and the one its template puts there."""
        own = frozenset() if self._tokenizer.eos_token_id is None else frozenset([self._tokenizer.eos_token_id])
        return own | (self.format.eos_ids if self.format else frozenset())

    def read(self, ids: Sequence[int]) -> Asked | None:
        """What one row of prompt ids asks; None where it does not follow the template.

        Args:
            ids: Prompt ids, left padding included.

        Raises:
            ValueError: The prompt holds no text, or asks for an answer that begins with reasoning.
        """
        text = raw_text(self._tokenizer, self._tokens, unpadded(self._tokenizer, ids))
        if not any(self._tokens[i] for i in ids if i < len(self._tokens)):
            raise ValueError(
                f"The prompt must hold some text, got only special tokens: {text.decode(errors='replace')!r}. An "
                "empty prompt cannot be steered, and neither can an encoder-decoder model, whose answer starts from "
                "a lone start token."
            )
        if self._recover is not None:
            return Asked(as_messages(self._recover(_readable(text))), b"", b"")
        found = self._parse(text)
        if found is None:
            return None
        messages, rest, reply = found
        if (reply.reasons and not rest) or _reasoning_is_open(reply.opening + rest):
            raise ValueError(
                f"The target's replies must begin with their answer, but after {_readable(reply.opening)!r} its "
                f"template begins with reasoning. Steering would end inside it: render the prompt with "
                "`enable_thinking=False`, or write the reasoning's end into the prompt."
            )
        return Asked(messages, rest.removeprefix(reply.lead_in), b"" if rest else reply.lead_in)

    def _parse(self, text: bytes) -> tuple[list[Message], bytes, Reply] | None:
        """The prompt by its template; a BOS in front may be padding of the same id that the template never wrote."""
        if self.format is None:
            return None
        bos = (self._tokenizer.bos_token or "").encode()
        return self.format.parse(text) or (self.format.parse(text.removeprefix(bos)) if bos else None)

    def lead_in(self, messages: list[Message]) -> bytes:
        """The white space that the model writes before the first word of its answer to a conversation."""
        return render_prompt(self._tokenizer, self._tokens, messages)[1]

    def plain(self, ids: Sequence[int]) -> str:
        """The prompt's text without special tokens, for a prompt that follows no known template."""
        return _readable(b"".join(self._tokens[i] or b"" for i in ids if i < len(self._tokens)))


def learn_format(tokenizer: PreTrainedTokenizerBase, tokens: list[bytes | None], template: str) -> ChatFormat | None:
    """Learn what a Jinja chat template puts around messages; None where it cannot be seen."""

    def render(roles: list[tuple[str, str]], **options: Any) -> bytes | None:
        messages = [{"role": role, "content": content} for role, content in roles]
        text = _rendered(tokenizer, messages, chat_template=template, **options)
        if text is None:
            return None
        ids = tokenizer(text, add_special_tokens=False).input_ids
        return raw_text(tokenizer, tokens, ids)

    ask = [("user", _QUESTION)]
    answered = render([*ask, ("assistant", _ANSWER)])
    turns = render([*ask, ("assistant", _ANSWER), ("user", _SECOND)], add_generation_prompt=True)
    if answered is None or _ANSWER.encode() not in answered:
        return None
    start = answered.partition(_QUESTION.encode())[0]
    before_answer, _, tail = answered.partition(_QUESTION.encode())[2].partition(_ANSWER.encode())
    openings = {}
    for options in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
        asked = render(ask, add_generation_prompt=True, **options)
        if asked is not None and _QUESTION.encode() in asked:
            opening = asked.partition(_QUESTION.encode())[2]
            openings[opening] = _reply(opening, before_answer)
    between = b""
    if turns is not None and _SECOND.encode() in turns:
        history = turns.partition(_QUESTION.encode())[2].partition(_ANSWER.encode())
        between = history[2].partition(_SECOND.encode())[0]
        openings.setdefault(history[0].rstrip() or history[0], Reply(history[0].rstrip() or history[0], b"", False))
    around = render([("system", _SYSTEM), *ask], add_generation_prompt=True)
    around_system = None
    if around is not None and _SYSTEM.encode() in around and _QUESTION.encode() in around:
        before, _, rest = around.partition(_SYSTEM.encode())
        around_system = before, rest.partition(_QUESTION.encode())[0]
    ends = {i for i, name in _special_names(tokenizer).items() if tail.lstrip().startswith(name)}
    replies = tuple(sorted((r for r in openings.values() if r.opening), key=lambda r: -len(r.opening)))
    return ChatFormat(start, around_system, replies, between, frozenset(ends)) if replies else None


def _reply(opening: bytes, before_answer: bytes) -> Reply:
    """How an answer begins after `opening`, where a finished answer has `before_answer` in front of it."""
    if before_answer.startswith(opening):
        lead_in = before_answer[len(opening) :]
        return Reply(opening, b"" if lead_in.strip() else lead_in, reasons=bool(lead_in.strip()))
    return Reply(opening, b"", reasons=_reasoning_is_open(opening))


def _reasoning_is_open(opening: bytes) -> bool:
    return opening.count(b"<think>") > opening.count(b"</think>")


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
    marked = [*messages[:last], {"role": "user", "content": _QUESTION}, *messages[last + 1 :]]
    try:
        ids = encode_once(tokenizer, target_text(tokenizer, marked))
    except Exception as error:
        if type(error).__module__.split(".")[0] != "jinja2":
            raise
        return None
    _, marker, after = raw_text(tokenizer, tokens, ids).rpartition(_QUESTION.encode())
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
    """The same messages, words in them that name the tokenizer's special tokens broken up so that they stay words.

    The target may read them as plain text; an anchor or a judge must not read them as the end of a turn.
    """
    names = [name for name in (name.decode() for name in _special_names(tokenizer).values()) if len(name) > 1]

    def broken_up(content: str) -> str:
        for name in names:
            content = content.replace(name, f"{name[0]}\u200b{name[1:]}")
        return content

    return [{**message, "content": broken_up(message["content"])} for message in messages]


def _before_answer(tokenizer: PreTrainedTokenizerBase, tokens: list[bytes | None], messages: list[Message]) -> tuple[str, bytes]:
    """The rendered text before the next answer (an empty reasoning block included), and the answer's lead-in."""

    def render(extra: list[Message], **options: Any) -> str:
        for attempt in (messages, merge_system(messages)):
            text = _rendered(tokenizer, [*attempt, *extra], enable_thinking=False, **options)
            if text is not None:
                return text
        raise ValueError(
            f"The anchor's chat template must render the conversation, but refuses {messages!r}. Pass `conversations` "
            "with the roles and the order that it knows."
        )

    asked = render([], add_generation_prompt=True)
    answered = render([{"role": "assistant", "content": _ANSWER}])
    before = answered.rpartition(_ANSWER)[0]  # the last one: a user may write the word, too
    bytes_before = raw_text(tokenizer, tokens, tokenizer(answered, add_special_tokens=False).input_ids)
    bytes_before = bytes_before.rpartition(_ANSWER.encode())[0]
    bytes_asked = raw_text(tokenizer, tokens, tokenizer(asked, add_special_tokens=False).input_ids)
    reply = _reply(bytes_asked, bytes_before)
    if not reply.reasons:
        return asked, reply.lead_in
    shown = before.rstrip()
    return shown, before[len(shown) :].encode()


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[Message], **options: Any) -> str | None:
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
    names = _special_names(tokenizer)
    return b"".join((tokens[i] if i < len(tokens) else None) or names.get(i, b"") for i in ids)


def unpadded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """Prompt ids without their left padding; a BOS that doubles as the pad token is kept once."""
    pad = tokenizer.pad_token_id
    n_pads = next((n for n, i in enumerate(ids) if i != pad), len(ids))
    if n_pads and pad == tokenizer.bos_token_id:
        n_pads -= 1
    return list(ids[n_pads:])


def _special_names(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    return {i: token.content.encode() for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def _readable(text: bytes) -> str:
    return text.decode(errors="replace").strip()
