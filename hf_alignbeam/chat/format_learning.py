"""Chat templates learned by rendering placeholders: messages, today's date and the template's variables.

Knows a tokenizer and a Jinja template. Knows no prompt.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_alignbeam.chat.chat_format import ChatFormat, TurnBoundary, common_prefix
from hf_alignbeam.chat.templates import (
    AnswerOpening,
    answer_opening,
    bytes_with_special_tokens,
    placeholders,
    render_or_none,
    special_token_names,
)


@dataclass(frozen=True)
class _PlaceholderRenderer:
    """Renders placeholder messages, given as (role, content), to see what a Jinja chat template writes around them."""

    tokenizer: PreTrainedTokenizerBase
    tokens: list[bytes | None]
    template: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def text_around(self, *messages: tuple[str, str], **options: Any) -> list[bytes]:
        """The text before, between and after messages; an empty list where the template refuses or drops one of them."""
        conversation = [{"role": role, "content": content} for role, content in messages]
        text = render_or_none(self.tokenizer, conversation, chat_template=self.template, **{**self.values, **options})
        if text is None:
            return []
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        rest = bytes_with_special_tokens(self.tokenizer, self.tokens, ids)
        parts = []
        for _, content in messages:
            before, placeholder, rest = rest.partition(content.encode())
            if not placeholder:
                return []
            parts.append(before)
        return [*parts, rest]

    def answer_boundaries(self, *messages: tuple[str, str], second: str) -> list[tuple[bytes, str, AnswerOpening]]:
        """The ways in which an answer may begin after messages."""
        before_answer = (self.text_around(*messages, ("assistant", second)) or [b"", b""])[-2]
        openings = {}
        for options in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
            if parts := self.text_around(*messages, add_generation_prompt=True, **options):
                openings[parts[-1]] = answer_opening(parts[-1], before_answer)
        if any(opening.reasoning_first and before_answer.startswith(text) for text, opening in openings.items()):
            openings.setdefault(before_answer, AnswerOpening(before_answer, b"", False))
        return [(text, "assistant", opening) for text, opening in openings.items()]

    def with_values(self, message: str, value: str) -> "_PlaceholderRenderer":
        """The same renderer, with a placeholder for each value that the template writes: today's date, and its variables."""
        conversation = [{"role": "user", "content": message}]
        known = {*inspect.signature(self.tokenizer.apply_chat_template).parameters, *self.tokenizer.special_tokens_map}
        names = set(re.findall(r"(?<![\w.'\"])[A-Za-z_]\w*", self.template)) - known
        usual = render_or_none(self.tokenizer, conversation, chat_template=self.template)
        values: dict[str, Any] = {}
        for name in sorted(names) if usual is not None else ():
            given: Any = (lambda *_: value) if name == "strftime_now" else value
            try:
                text = render_or_none(self.tokenizer, conversation, chat_template=self.template, **{name: given})
            except Exception:  # whatever a template's own code raises for a text in place of what it expects
                continue
            if text and value in text and re.fullmatch(".+?".join(map(re.escape, text.split(value))), str(usual), re.DOTALL):
                values[name] = given
        return replace(self, values=values)


def learn_format(tokenizer: PreTrainedTokenizerBase, tokens: list[bytes | None], template: str) -> ChatFormat | None:
    """Learn what a Jinja chat template writes around messages; None where it hides that."""
    question, reply, second_content, system_content, tool_content, value = placeholders(tokenizer, tokens)
    user, answer = ("user", question), ("assistant", reply)
    tool, second_tool = ("tool", tool_content), ("tool", second_content)
    plain = _PlaceholderRenderer(tokenizer, tokens, template)
    usual, renderer = plain.text_around(user, answer), plain.with_values(question, value)
    answered = renderer.text_around(user, answer)
    if not answered:
        renderer, answered = plain, usual
    if not answered:
        return None
    found: dict[str, list[tuple[bytes, str, AnswerOpening | None]]] = {"assistant": [], "tool": []}
    found["user"] = [*renderer.answer_boundaries(user, second=second_content)]
    question_opening = b""
    if second := renderer.text_around(user, answer, ("user", second_content), add_generation_prompt=True):
        earlier = second[1].rstrip() or second[1]
        found["user"].append((earlier, "assistant", AnswerOpening(earlier, b"", False)))
        found["assistant"].append((second[2], "user", None))
        question_opening = common_prefix(second[2][::-1], answered[0][::-1])[::-1]
    if with_tools := renderer.text_around(user, answer, tool, second_tool):
        found["assistant"].append((with_tools[2], "tool", None))
        boundaries = renderer.answer_boundaries(user, answer, tool, second=second_content)
        found["tool"] = [*boundaries, (with_tools[3], "tool", None)]
    with_system = renderer.text_around(("system", system_content), user)
    special = special_token_names(tokenizer)
    names = re.compile(b"|".join(map(re.escape, sorted(special.values(), key=len, reverse=True))) or b"(?!)")
    compiled = partial(_value_pattern, value=value.encode())
    longest_first = {
        role: tuple(
            TurnBoundary(compiled(text), next_role, opening)
            for text, next_role, opening in sorted(each, key=lambda b: -len(b[0]))
            if text
        )
        for role, each in found.items()
    }
    if not longest_first["user"]:
        return None
    start = compiled(answered[0])
    usual_start = start.fullmatch(usual[0]) if usual else None
    return ChatFormat(
        (answered[0], with_system[0] + with_system[1]) if with_system else (answered[0],),
        start,
        (compiled(with_system[0]), compiled(with_system[1])) if with_system else None,
        longest_first,
        frozenset(i for i, name in special.items() if answered[-1].lstrip().startswith(name)),
        question_opening[first_name.start() :] if (first_name := names.search(question_opening)) else None,
        frozenset(usual_start.groups() if usual_start else ()),
        names,
    )


def _value_pattern(text: bytes, value: bytes) -> re.Pattern[bytes]:
    """A pattern for a text with a group in place of each value."""
    return re.compile(rb"([^\n]*?)".join(map(re.escape, text.split(value))))
