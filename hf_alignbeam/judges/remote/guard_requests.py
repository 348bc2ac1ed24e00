"""GuardRequests: what a completion endpoint is asked about an exchange, by a guard's profile.

Knows profiles and the requests of `/v1/chat/completions` and `/v1/completions`. Knows no tokenizer, no answer and no connection.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_alignbeam.chat.conversations import Message, alternate_roles, merge_system
from hf_alignbeam.chat.templates import escape_matches
from hf_alignbeam.judges.profile import GuardProfile
from hf_alignbeam.judges.rendering import fill_prompt, recent

#: How many likeliest tokens are asked for: the most that OpenAI's chats and vLLM allow, and OpenAI's completions.
N_TOP_CHAT, N_TOP_COMPLETION = 20, 5
#: How many tokens a verdict may have, with the white space before it.
N_VERDICT_TOKENS = 8

#: Options of chat templates that are fields of OpenAI's requests, too.
_FIELDS = ("reasoning_effort",)
#: Options that templates have by themselves. Without `enable_thinking` a model may reason, and then gives no verdict.
_DEFAULTS: dict[str, Any] = {"guardian_config": {"risk_name": "harm"}, "enable_thinking": False}

#: What tokenizers and templates read as markup. The endpoint's own cannot be known here.
_MARKUP = re.compile(r"<[|｜][^<>\n]{1,60}[|｜]>|</?[A-Za-z_]{1,30}[0-9]{0,3}>|\[/?[A-Z_]{1,30}\]")
#: What begins a text by itself at every endpoint.
_BOS = re.compile(r"<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>")


@dataclass(frozen=True)
class GuardRequests:
    """Builds requests for a guard.

    Attributes:
        profile: What the guard expects.
        model: Its name at the endpoint.
    """

    profile: GuardProfile
    model: str

    @property
    def path(self) -> str:
        """The path after the base URL."""
        return "/chat/completions" if self.profile.as_message else "/completions"

    @property
    def has_start(self) -> bool:
        """Whether requests hold the profile's `answer_start`. A chat has no place for it: the guard writes it."""
        return not self.profile.as_message

    @property
    def template_fields(self) -> list[dict[str, Any]]:
        """The fields for the chat template, as vLLM, SGLang and llama.cpp take them; then those that any endpoint takes.

        The latter are left out where they do not say the same.
        """
        profile = self.profile
        if not profile.as_message:
            return [{}]
        fields: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False, **profile.template_options}}
        if profile.chat_template is not None:
            return [{**fields, "chat_template": profile.chat_template}]
        options = profile.template_options
        if any(name not in _FIELDS and value != _DEFAULTS.get(name) for name, value in options.items()):
            return [fields]
        return [fields, {name: options[name] for name in _FIELDS if name in options}]

    def values(self, messages: Sequence[Message], response: str) -> Iterator[dict[str, Any]]:
        """The request about an exchange, without probabilities and `template_fields`; then the same in other forms.

        They are for a template that refuses some roles.
        """
        common = {"model": self.model, "temperature": 0, "max_tokens": self._max_tokens()}
        profile = self.profile
        if profile.prompt is None:
            exchange = recent([*messages, {"role": "assistant", "content": response}], profile.max_messages)
            forms: list[list[Message]] = []
            asked: list[Message] = [] if profile.question is None else [{"role": "user", "content": profile.question}]
            for form in (exchange, merge_system(exchange), alternate_roles(exchange)):
                if form not in forms:
                    forms.append(form)
                    messages = [self._content(each, escape_markup(each["content"])) for each in form]
                    messages += [self._content(each, each["content"]) for each in asked]
                    yield {**common, "messages": messages}
            return
        exchange = [{**message, "content": escape_markup(message["content"])} for message in messages]
        exchange = recent([*exchange, {"role": "assistant", "content": escape_markup(response)}], profile.max_messages)
        text = fill_prompt(profile.prompt, exchange)
        if profile.as_message:
            system = [] if profile.system is None else [{"role": "system", "content": profile.system}]
            yield {**common, "messages": [*system, {"role": "user", "content": text}]}
        else:
            yield {**common, "prompt": text[_bos_length(text) :] + profile.answer_start}

    def with_probabilities(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """The same request, which asks for the likeliest tokens as well."""
        if self.profile.as_message:
            return {**value, "logprobs": True, "top_logprobs": N_TOP_CHAT}
        return {**value, "logprobs": N_TOP_COMPLETION}

    def _content(self, message: Message, content: str) -> dict[str, Any]:
        """A message with this content, in parts where the template wants them."""
        return {**message, "content": [{"type": "text", "text": content}] if self.profile.typed_parts else content}

    def _max_tokens(self) -> int:
        """A token holds at least a byte of the fixed text that the guard writes first."""
        start = 0 if self.has_start else len(self.profile.answer_start.encode())
        return self.profile.max_new_tokens + start + N_VERDICT_TOKENS


def escape_markup(text: str) -> str:
    """Split what looks like markup of a template or a tokenizer by a zero-width space. Different texts stay different."""
    return escape_matches(_MARKUP, text)


def _bos_length(text: str) -> int:
    match = _BOS.match(text)
    return match.end() if match else 0
