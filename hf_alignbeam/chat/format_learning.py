"""Chat templates learned by rendering placeholders in place of messages.

Knows a tokenizer and a Jinja template. Knows no prompt.
"""

import re
from dataclasses import dataclass
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

    def text_around(self, *messages: tuple[str, str], **options: Any) -> list[bytes]:
        """The text before, between and after messages; an empty list where the template refuses or drops one of them."""
        conversation = [{"role": role, "content": content} for role, content in messages]
        text = render_or_none(self.tokenizer, conversation, chat_template=self.template, **options)
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

    def answer_boundaries(self, *messages: tuple[str, str], second: str) -> list[TurnBoundary]:
        """The ways in which an answer may begin after messages."""
        before_answer = (self.text_around(*messages, ("assistant", second)) or [b"", b""])[-2]
        openings = {}
        for options in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
            if parts := self.text_around(*messages, add_generation_prompt=True, **options):
                openings[parts[-1]] = answer_opening(parts[-1], before_answer)
        if any(opening.reasoning_first and before_answer.startswith(text) for text, opening in openings.items()):
            openings.setdefault(before_answer, AnswerOpening(before_answer, b"", False))
        return [TurnBoundary(text, "assistant", opening) for text, opening in openings.items()]


def learn_format(tokenizer: PreTrainedTokenizerBase, tokens: list[bytes | None], template: str) -> ChatFormat | None:
    """Learn what a Jinja chat template writes around messages; None where it hides that."""
    question, reply, second_content, system_content, tool_content = placeholders(tokenizer, tokens)
    user, answer = ("user", question), ("assistant", reply)
    tool, second_tool = ("tool", tool_content), ("tool", second_content)
    renderer = _PlaceholderRenderer(tokenizer, tokens, template)
    answered = renderer.text_around(user, answer)
    if not answered:
        return None
    boundaries: dict[str, list[TurnBoundary]] = {"user": renderer.answer_boundaries(user, second=second_content)}
    boundaries |= {"assistant": [], "tool": []}
    question_opening = b""
    if second := renderer.text_around(user, answer, ("user", second_content), add_generation_prompt=True):
        earlier = second[1].rstrip() or second[1]
        boundaries["user"].append(TurnBoundary(earlier, "assistant", AnswerOpening(earlier, b"", False)))
        boundaries["assistant"].append(TurnBoundary(second[2], "user"))
        question_opening = common_prefix(second[2][::-1], answered[0][::-1])[::-1]
    if with_tools := renderer.text_around(user, answer, tool, second_tool):
        boundaries["assistant"].append(TurnBoundary(with_tools[2], "tool"))
        openings = renderer.answer_boundaries(user, answer, tool, second=second_content)
        boundaries["tool"] = [*openings, TurnBoundary(with_tools[3], "tool")]
    with_system = renderer.text_around(("system", system_content), user)
    special = special_token_names(tokenizer)
    names = re.compile(b"|".join(map(re.escape, sorted(special.values(), key=len, reverse=True))) or b"(?!)")
    longest_first = {
        role: tuple(sorted((b for b in candidates if b.text), key=lambda b: -len(b.text)))
        for role, candidates in boundaries.items()
    }
    if not longest_first["user"]:
        return None
    first_name = names.search(question_opening)
    return ChatFormat(
        answered[0],
        (with_system[0], with_system[1]) if with_system else None,
        longest_first,
        frozenset(i for i, name in special.items() if answered[-1].lstrip().startswith(name)),
        question_opening[first_name.start() :] if first_name else None,
        names,
    )
