"""GuardPrompt: an exchange as a guard reads it, by its profile and its tokenizer.

Knows profiles, chat templates and what must be escaped in a message. Knows no model and no verdict.

A template is rendered once with placeholders for each order of roles, and the messages are put in their places. So each
message stands where it belongs, whatever its words are, and no template drops or rewrites a part of it. What the template
writes around messages is escaped in them, so that no two exchanges look the same.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import Message, alternate_roles, merge_system
from hf_alignbeam.chat.templates import (
    encode_with_one_bos,
    escape_special_tokens,
    missing_reasoning_end,
    render_or_none,
    render_to_answer,
    special_token_names,
)
from hf_alignbeam.judges.profile import GuardProfile
from hf_alignbeam.judges.reading.lossless import LossCheck
from hf_alignbeam.judges.reading.turns import escape_delimiters, fence
from hf_alignbeam.tokenization.vocabulary import token_bytes

#: Stands for the content of each message while a template is rendered, with its place in the conversation. The tabs around it
#: are lost where a template trims contents.
_PLACEHOLDER = "\tQzx{}q\t"
_PLACEHOLDERS = re.compile(r"(\t?)Qzx(\d+)q(\t?)")
#: The places of a profile's prompt.
_PLACES = re.compile(r"\{(conversation|user|response)\}")


@dataclass(frozen=True)
class _Skeleton:
    """A rendered conversation with places for its messages.

    Attributes:
        texts: What the template writes before, between and after the places.
        places: Which message stands at each place.
        trims: Whether the template drops white space around messages.
        delimiters: What it writes next to messages on their lines, but for special tokens, which are escaped anyway.
    """

    texts: list[str]
    places: list[int]
    trims: bool
    delimiters: list[str]


class GuardPrompt:
    """Renders exchanges for a guard.

    Args:
        tokenizer: The guard's tokenizer.
        profile: What the guard expects.

    Raises:
        ValueError: The profile needs a chat template, and there is none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, profile: GuardProfile):
        needs_template = profile.prompt is None or profile.as_message
        if needs_template and profile.chat_template is None and tokenizer.chat_template is None:
            raise ValueError(
                f"`tokenizer` must have a chat template for the profile {profile.name!r}, got none. A model without one was not "
                "tuned to answer, and judges nothing: use a guard or an instruction-tuned model. If its template is only missing "
                "here, give it (`chat_template` of the profile, --judge-template), or a profile whose `prompt` is the whole text."
            )
        self._tokenizer = tokenizer
        self._profile = profile
        self._tokens = token_bytes(tokenizer)
        self._special = [name.decode() for name in special_token_names(tokenizer).values()]
        self._skeletons: dict[tuple[str, ...], _Skeleton | None] = {}
        self._loss_check = LossCheck(tokenizer, self._tokens)
        self._answer_start: list[int] = tokenizer(profile.answer_start, add_special_tokens=False).input_ids

    def ids(self, messages: Sequence[Message], response: str) -> list[int]:
        """The ids that the guard reads before its verdict, with exactly one BOS.

        Raises:
            ValueError: The chat template renders no form of the conversation, or the tokens lose a part of it. The message holds
                no text of the exchange.
        """
        return self._encoded(self.text(messages, response)) + self._answer_start

    def request_ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation through the chat template, up to where the response begins.

        Raises:
            ValueError: As `ids`.
        """
        return self._encoded(self._rendered(list(messages)))

    def response_ids(self, response: str) -> list[int]:
        """The ids of a response after `request_ids`: with no ids that the template writes around messages.

        Raises:
            ValueError: As `ids`.
        """
        skeleton = self._skeleton(("user", "assistant"))
        (escaped,) = escape_special_tokens(self._tokenizer, [{"role": "assistant", "content": response}])
        return self._encoded(escape_delimiters(escaped["content"], skeleton.delimiters if skeleton else []), starts=False)

    def readable(
        self, exchanges: Sequence[tuple[list[Message], str]], n_positions: int | None, n_answer: int
    ) -> tuple[dict[int, list[int]], list[str]]:
        """The ids of the exchanges that can be read, by their places, and why the others cannot.

        Args:
            exchanges: Conversations, each with its response.
            n_positions: How many tokens the model takes; None for any number.
            n_answer: How many of them its answer may need.
        """
        ids: dict[int, list[int]] = {}
        reasons = []
        for n, exchange in enumerate(exchanges):
            try:
                row = self.ids(*exchange)
            except ValueError as error:
                reasons.append(str(error))
                continue
            if n_positions is not None and len(row) + n_answer > n_positions:
                reasons.append(
                    f"The judge's context takes {n_positions} tokens, but the exchange has {len(row)} and its verdict may have "
                    f"{n_answer}."
                )
                continue
            ids[n] = row
        return ids, reasons

    def text(self, messages: Sequence[Message], response: str) -> str:
        """The text that the guard reads, without `answer_start`."""
        exchange = recent([*messages, {"role": "assistant", "content": response}], self._profile.max_messages)
        if self._profile.prompt is not None:
            escaped = escape_special_tokens(self._tokenizer, exchange)
            return self._put(self._prompt_skeleton, prompt_values(escaped))
        return self._rendered(exchange)

    def _encoded(self, text: str, starts: bool = True) -> list[int]:
        """The ids of a text, with a BOS where it `starts` what the guard reads."""
        ids = encode_with_one_bos(self._tokenizer, text) if starts else self._tokenizer(text, add_special_tokens=False).input_ids
        if self._loss_check.loses_text(text, ids):
            raise ValueError("The judge's tokens must hold a whole exchange, but lose a part of it. Use a judge of its language.")
        return list(ids)

    def _rendered(self, exchange: list[Message]) -> str:
        """A conversation through the chat template."""
        for variant in (exchange, merge_system(exchange), alternate_roles(exchange)):
            skeleton = self._skeleton(tuple(message["role"] for message in variant))
            if skeleton is not None:
                escaped = escape_special_tokens(self._tokenizer, variant)
                return self._put(skeleton, [message["content"] for message in escaped])
        roles = ", ".join(message["role"] for message in exchange)
        raise ValueError(
            f"The chat template must render a whole conversation of {roles}, but refuses it or leaves out a message. Pass "
            "`conversations` with the roles and the order that it knows, or a profile with a `prompt`."
        )

    def _put(self, skeleton: _Skeleton, contents: Sequence[str]) -> str:
        parts = [skeleton.texts[0]]
        for place, after in zip(skeleton.places, skeleton.texts[1:], strict=True):
            content = contents[place].strip() if skeleton.trims else contents[place]
            parts += [escape_delimiters(content, skeleton.delimiters), after]
        return "".join(parts)

    def _skeleton(self, roles: tuple[str, ...]) -> _Skeleton | None:
        """The conversation of these roles rendered with placeholders; None where the template refuses or drops some.

        Contents are given as the profile says, and where that fails in the other form.
        """
        if roles not in self._skeletons:
            messages = [{"role": role, "content": _PLACEHOLDER.format(n)} for n, role in enumerate(roles)]
            if self._profile.question is not None:
                messages.append({"role": "user", "content": self._profile.question})
            forms = (self._profile.typed_parts, not self._profile.typed_parts)
            rendered = (_split(self._render(messages, typed), range(len(roles)), self._special) for typed in forms)
            self._skeletons[roles] = next((skeleton for skeleton in rendered if skeleton is not None), None)
        return self._skeletons[roles]

    @cached_property
    def _prompt_skeleton(self) -> _Skeleton:
        """The profile's own prompt, in the chat template or alone."""
        prompt = self._profile.prompt or ""
        names = _PLACES.findall(prompt)
        numbers = iter(range(len(names)))
        text = _PLACES.sub(lambda _: _PLACEHOLDER.format(next(numbers)), prompt)
        if self._profile.as_message:
            system = [] if self._profile.system is None else [{"role": "system", "content": self._profile.system}]
            messages: list[Message] = [*system, {"role": "user", "content": text}]
            # A guard that reasons opens its reasoning itself; for another, an answer begins where its verdict does.
            reasons = self._profile.verdict_after is not None or self._profile.chat_template is not None
            rendered = self._render(messages, self._profile.typed_parts) if reasons else None
            text = rendered or render_to_answer(self._tokenizer, self._tokens, messages)[0]
        skeleton = _split(text, range(len(names)), self._special)
        if skeleton is None:
            raise ValueError(f"The chat template must render the prompt of the profile {self._profile.name!r}, but drops a part.")
        return replace(skeleton, places=[("conversation", "user", "response").index(name) for name in names], trims=False)

    def _render(self, messages: list[Message], typed: bool) -> str | None:
        """Messages rendered up to the verdict, an open reasoning block closed; None where the template refuses them."""
        options = {"add_generation_prompt": True, "enable_thinking": False, **self._profile.template_options}
        if self._profile.chat_template is not None:
            options["chat_template"] = self._profile.chat_template
        try:
            text = render_or_none(self._tokenizer, [_typed(each) for each in messages] if typed else messages, **options)
        except TypeError:  # a template for texts adds one to a list, or the other way round
            return None
        if text is not None and (end := missing_reasoning_end(text.encode())) is not None:
            return f"{text.rstrip()}\n\n{end}\n\n"
        return text


def recent(exchange: list[Message], max_messages: int | None) -> list[Message]:
    """The last messages of an exchange; None for all."""
    return exchange if max_messages is None else exchange[-max_messages:]


def prompt_values(exchange: Sequence[Message]) -> list[str]:
    """The values of `{conversation}`, `{user}` and `{response}`.

    Where there are several messages before the response, `{user}` is all of them as a transcript.
    """
    *before, last = exchange
    user = before[-1]["content"] if len(before) == 1 else transcript(before)
    return [transcript(exchange), user, last["content"]]


def fill_prompt(prompt: str, exchange: Sequence[Message]) -> str:
    """A profile's prompt about an exchange as text, for a guard that reads no chat template here.

    What stands next to the places in the prompt is escaped in messages.

    Args:
        prompt: A text with the places of a profile's `prompt`.
        exchange: The conversation, with the response as its last message.
    """
    values = dict(zip(("conversation", "user", "response"), prompt_values(exchange), strict=True))
    delimiters = [line for text in _PLACES.split(prompt)[::2] for line in _outer_lines(text)]
    return _PLACES.sub(lambda place: escape_delimiters(values[place[1]], delimiters), prompt)


def transcript(exchange: Sequence[Message]) -> str:
    """Messages one after the other, each under its role and fenced, so that no message can look like two."""
    return "\n\n".join(f"{message['role']}:\n{fence(message['content'])}" for message in exchange)


def _typed(message: Message) -> Any:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _split(text: str | None, expected: Sequence[int], special: Sequence[str]) -> _Skeleton | None:
    """A rendered text cut at its placeholders; None where they are not all there, once each and in order."""
    if text is None:
        return None
    found = list(_PLACEHOLDERS.finditer(text))
    if [int(match[2]) for match in found] != list(expected):
        return None
    trims = not any(match[1] or match[3] for match in found)
    ends = [0, *(match.end() for match in found)]
    starts = [*(match.start() for match in found), len(text)]
    texts = [text[end:start] for end, start in zip(ends, starts, strict=True)]
    lines = dict.fromkeys(line for each in texts for line in _outer_lines(each))
    delimiters = [line for line in lines if not any(name in line for name in special)]
    return _Skeleton(texts, list(expected), trims, delimiters)


def _outer_lines(text: str) -> list[str]:
    """The first and the last line of a text that are not blank."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[:1] + lines[-1:] if lines else []
