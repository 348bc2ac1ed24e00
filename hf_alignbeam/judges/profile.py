"""GuardProfile: what a guard model expects to read, and how it writes its verdict.

Knows the record, its checks and its form as a mapping. Knows no published guard, no tokenizer and no model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from hf_alignbeam.utils.checks import check_whole_number, is_number

#: The places of a `prompt` text: the whole conversation with the response, the last user message, and the response.
PLACES = ("{conversation}", "{user}", "{response}")

#: The types of the values that a mapping may give, beside lists and mappings, and what they are called. What only documents a
#: guard may be anything, such as a date in YAML.
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "answer_start"), (str,)),
    **dict.fromkeys(("prompt", "system", "chat_template", "question", "verdict_after"), (str, type(None))),
    **dict.fromkeys(("as_message", "typed_parts"), (bool,)),
    "max_new_tokens": (int,),
    "max_messages": (int, type(None)),
}
_CALLED = {str: "a text", bool: "true or false", int: "a whole number", type(None): "null"}


@dataclass(frozen=True)
class GuardProfile:
    """How a guard model is asked, and how its verdict is read.

    A causal model writes a verdict text; a sequence classifier has a label for each. Everything a judge needs to know about a
    published guard is here.

    Attributes:
        name: What `profile=` calls it.
        verdicts: The harm in [0, 1] of each verdict text, or of each label of a sequence classifier. Letter case is ignored.
            Labels that are left out count as harmless; verdict texts that are left out are no verdict.
        model_ids: The Hub ids of its models. `*` stands for any characters, and letter case is ignored.
        template_marks: Texts that all stand in the chat template of such a model, for copies under another name.
        prompt: None: the tokenizer's chat template renders the conversation, of which the response is the last message, and
            asks for the verdict itself. Else a text with `{conversation}`, or `{user}` and `{response}`, or `{response}`.
        as_message: Whether `prompt` is sent as a user message through the chat template, or is the whole text.
        system: The system message before such a user message.
        chat_template: A Jinja chat template to use in place of the tokenizer's.
        typed_parts: Whether the chat template wants contents as `[{"type": "text", "text": ...}]`.
        template_options: Further arguments of the chat template.
        question: A user message about the response, fixed, which stands after it. Without a `prompt` only.
        max_messages: How many messages it reads, the last ones; None for all.
        judges: What it can judge: `"response"`, `"prompt"`, or both.
        answer_start: What stands before every verdict text, fixed: it is fed to the model. White space before a verdict needs
            no mention.
        verdict_after: What stands before the verdict after a text that varies: the model generates up to it. The last one of
            what it generates counts.
        max_new_tokens: With `verdict_after`, how many tokens the model may generate before it.
        threshold: Its own threshold, in (0, 1): the harm that is reported as .5. None: found when the judge is built.
        license, size, source: Its license, its number of weights, and where all this is documented.

    Raises:
        ValueError: A value is out of its range.
    """

    name: str
    verdicts: Mapping[str, float]
    model_ids: tuple[str, ...] = ()
    template_marks: tuple[str, ...] = ()
    prompt: str | None = None
    as_message: bool = True
    system: str | None = None
    chat_template: str | None = None
    typed_parts: bool = False
    template_options: Mapping[str, Any] = field(default_factory=dict)
    question: str | None = None
    max_messages: int | None = None
    judges: tuple[Literal["response", "prompt"], ...] = ("response", "prompt")
    answer_start: str = ""
    verdict_after: str | None = None
    max_new_tokens: int = 0
    threshold: float | None = 0.5
    license: str = ""
    size: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if not self.verdicts or not all(
            isinstance(text, str) and text.strip() and 0.0 <= harm <= 1.0 for text, harm in self.verdicts.items()
        ):
            raise ValueError(f"`verdicts` must give each verdict text a harm in [0, 1], got {dict(self.verdicts)}.")
        needed = PLACES if "response" not in self.judges else ("{conversation}", "{response}")
        if self.prompt is not None and not any(place in self.prompt for place in needed):
            raise ValueError(f"`prompt` must hold {' or '.join(needed)}, got {self.prompt!r}. Add one.")
        if self.prompt is None and not self.as_message:
            raise ValueError("`as_message` must be true without a `prompt`, got False. Leave it out.")
        if self.question is not None and self.prompt is not None:
            raise ValueError(f"`question` must be left out with a `prompt`, got {self.question!r}. Write it into the prompt.")
        if self.verdict_after is not None and not self.verdict_after.strip():
            raise ValueError(f"`verdict_after` must hold visible characters, got {self.verdict_after!r}. Leave it out for none.")
        if (self.verdict_after is None) != (self.max_new_tokens == 0) or self.max_new_tokens < 0:
            raise ValueError(
                f"`verdict_after` and `max_new_tokens` must come together, got {self.verdict_after!r} and {self.max_new_tokens}."
            )
        if self.threshold is not None and not 0.0 < self.threshold < 1.0:
            raise ValueError(f"`threshold` must be between 0 and 1, got {self.threshold}. Leave it out for .5.")
        if self.max_messages is not None:
            check_whole_number("max_messages", self.max_messages, 1, "Use None for all.")
        if not self.judges or not set(self.judges) <= {"response", "prompt"}:
            raise ValueError(f'`judges` must hold "response", "prompt" or both, got {self.judges!r}.')

    def has_template(self, chat_template: str) -> bool:
        """Whether a chat template is that of its models."""
        return bool(self.template_marks) and all(mark in chat_template for mark in self.template_marks)


def check_judges_responses(profile: GuardProfile) -> None:
    """Raise ValueError, by its name, for a guard that judges prompts only."""
    if "response" not in profile.judges:
        raise ValueError(
            f"A judge must judge responses, but {profile.name} judges prompts only. Use a guard of responses, such as Qwen3Guard."
        )


def profile_from_mapping(values: Mapping[str, Any]) -> GuardProfile:
    """A profile from plain values, as YAML and JSON give them.

    Raises:
        ValueError: A key is unknown, a value has the wrong type or is out of its range.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"`profile` must be a name or a mapping, got {values!r}.")
    known = {each.name for each in fields(GuardProfile)}
    if unknown := sorted(map(str, set(values) - known)):
        raise ValueError(
            f"A profile must have keys of GuardProfile, got {', '.join(unknown)}. Known: {', '.join(sorted(known))}."
        )
    if missing := sorted({"name", "verdicts"} - set(values)):
        raise ValueError(f"A profile must have {' and '.join(missing)}, got {', '.join(map(str, values))}.")
    tuples = {name: _strings(name, values[name]) for name in ("model_ids", "template_marks", "judges") if name in values}
    for name in ("verdicts", "template_options"):
        if not isinstance(values.get(name, {}), Mapping):
            raise ValueError(f"`{name}` of a profile must be a mapping, got {values[name]!r}.")
    for text in values["verdicts"]:
        if not isinstance(text, str):
            raise ValueError(
                f"`verdicts` of a profile must have texts as keys, got {text!r}. Put quotes around yes, no and digits, which "
                "YAML reads as other things without them."
            )
        if not is_number(values["verdicts"][text]):
            raise ValueError(
                f"`verdicts` of a profile must have numbers as values, got {values['verdicts'][text]!r} for {text!r}."
            )
    for name, types in _TYPES.items():
        if name in values and type(values[name]) not in types:
            called = " or ".join(_CALLED[each] for each in types)
            raise ValueError(f"`{name}` of a profile must be {called}, got {values[name]!r}.")
    if not is_number(values.get("threshold", 0.5)) and values["threshold"] is not None:
        raise ValueError(f"`threshold` of a profile must be a number or null, got {values['threshold']!r}.")
    return GuardProfile(**{**values, **tuples})


def _strings(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"`{name}` of a profile must be a list of texts, got {value!r}.")
    return tuple(value)
