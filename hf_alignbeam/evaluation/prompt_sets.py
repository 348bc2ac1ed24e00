"""Prompt sets for the evaluation, from files in their published layouts, the Hub or the testbed.

Knows layouts: which columns hold the prompt, the right answer, and whether the prompt asks for harm. Knows no model and no score.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.evaluation.files.prompt_source import HUB, TESTBED, PromptSpec
from hf_alignbeam.evaluation.prompt_files import PromptRecord, conversation_of, parse_bool, read_records
from hf_alignbeam.testbed.language import Prompt
from hf_alignbeam.testbed.model_store import WEIGHTS, stored_language

#: The harm categories of the OpenAI moderation set, one column each; some cells are empty.
MODERATION_FLAGS = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """One prompt of a set.

    Attributes:
        id: Unique in its set.
        conversation: The prompt as messages.
        answer: The right answer, where one is known.
        truth: The testbed's prompt, which its grammar can score answers to.
        place: Where it stands in its file, for errors.
    """

    id: str
    conversation: list[Message]
    answer: str | None = None
    truth: Prompt | None = None
    place: str = ""


@dataclass(frozen=True)
class PromptSet:
    """Prompts of which all ask for harm, or none does."""

    name: str
    harmful: bool
    examples: list[Example]


@dataclass(frozen=True)
class Layout:
    """How the rows of a published file are read. A file has this layout where it has these columns."""

    columns: frozenset[str]
    prompt: Callable[[Fields], Any]
    harmful: Callable[[Fields], bool]
    answer: Callable[[Fields], Any] = lambda row: None


LAYOUTS = {
    "AdvBench": Layout(frozenset({"goal", "target"}), lambda row: row["goal"], lambda row: True),
    "HarmBench": Layout(
        frozenset({"Behavior", "FunctionalCategory"}),
        lambda row: f"{row['ContextString']}\n\n---\n\n{row['Behavior']}" if row.get("ContextString") else row["Behavior"],
        lambda row: True,
    ),
    "JailbreakBench": Layout(
        frozenset({"Goal", "Target", "Behavior", "Category"}), lambda row: row["Goal"], lambda row: parse_bool(row["harmful"])
    ),
    "XSTest": Layout(frozenset({"prompt", "label", "focus"}), lambda row: row["prompt"], lambda row: _is_unsafe(row["label"])),
    "GSM8K": Layout(frozenset({"question", "answer"}), lambda row: row["question"], lambda row: False, lambda row: row["answer"]),
    "WildChat": Layout(
        frozenset({"conversation", "toxic", "language"}),
        lambda row: row["conversation"][0]["content"],
        lambda row: parse_bool(row["toxic"]),
    ),
    "OpenAI moderation": Layout(
        frozenset({"prompt", "HR", "SH"}),
        lambda row: row["prompt"],
        lambda row: any(parse_bool(row.get(f) or 0) for f in MODERATION_FLAGS),
    ),
    "conversations": Layout(
        frozenset({"messages"}),
        lambda row: row["messages"],
        lambda row: parse_bool(row["harmful"]),
        lambda row: row.get("answer"),
    ),
    "prompts": Layout(
        frozenset({"prompt"}), lambda row: row["prompt"], lambda row: parse_bool(row["harmful"]), lambda row: row.get("answer")
    ),
}


def load_prompts(spec: PromptSpec, weights: str | Path | None = None) -> list[PromptSet]:
    """Load the prompts of a source, the harmful and the harmless ones as two sets.

    Args:
        spec: Where they are and how they are read.
        weights: The folder of the testbed's weights.

    Raises:
        OSError: The file cannot be read.
        ValueError: The layout is unknown, a row does not fit it, or no row is left.
    """
    if spec.source.startswith(TESTBED):
        return [_testbed_set(spec, weights or WEIGHTS)]
    rows = _selected(spec, _hub_rows(spec) if spec.path is None else read_records(spec.path))
    if not rows:
        raise ValueError(f"`prompts` must hold at least one row, got none from {spec.source} where {spec.kept}.")
    layout = _layout(spec, rows[0][1].fields)
    examples: dict[bool, list[Example]] = {True: [], False: []}
    for number, row in rows:
        harmful, example = _example(row, str(number), layout)
        if spec.max_chars is None or sum(len(each["content"]) for each in example.conversation) <= spec.max_chars:
            examples[harmful].append(example)
    if not any(examples.values()):
        raise ValueError(f"`max_chars` must leave at least one prompt, got {spec.max_chars} for {spec.source}.")
    both = all(examples.values())
    return [
        PromptSet(spec.name + (f" {'harmful' if harmful else 'harmless'}" if both else ""), harmful, found[: spec.limit])
        for harmful, found in examples.items()
        if found
    ]


def read_prompts(path: Path) -> list[Example]:
    """Read the conversations of a file, whether or not they ask for harm: in a published layout, or as `prompt` or `messages`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is of no known format, or a record has no prompt; the message names the place.
    """
    examples = []
    for number, record in enumerate(read_records(path), start=1):
        layout = next((each for each in LAYOUTS.values() if each.columns <= set(record.fields)), None)
        if layout is None:
            raise ValueError(
                f"{record.place} must have 'prompt' or 'messages', or be in a known layout ({', '.join(LAYOUTS)}), got "
                f"{record.quote}."
            )
        examples.append(Example(str(number), conversation_of(record, layout.prompt(record.fields)), place=record.place))
    return examples


def _selected(spec: PromptSpec, rows: Sequence[PromptRecord]) -> list[tuple[int, PromptRecord]]:
    """The rows that a recipe wants, in its order, each with its number from 1."""
    numbered = [
        (number, row)
        for number, row in enumerate(rows, start=1)
        if (spec.rows is None or number % 2 == (spec.rows == "odd"))
        and all(str(row.fields.get(key)) == str(value) for key, value in spec.kept.items())
    ]
    if spec.seed is not None:
        random.Random(spec.seed).shuffle(numbered)
    return numbered


def _example(row: PromptRecord, id: str, layout: Layout) -> tuple[bool, Example]:
    """Whether a row asks for harm, and its prompt with the right answer."""
    try:
        harmful, prompt, answer = layout.harmful(row.fields), layout.prompt(row.fields), layout.answer(row.fields)
        messages = conversation_of(row, prompt)
        if not any(message["role"] == "user" for message in messages):
            raise ValueError("no question by a user")
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        problem = f"no {error}" if isinstance(error, KeyError) else str(error).removeprefix(f"{row.place}: ").rstrip(".")
        raise ValueError(
            f"{row.place} must have a prompt and say whether it asks for harm, but has {problem}. Name the columns with "
            "`prompt`, `answer` and `harmful`."
        ) from error
    return harmful, Example(id, messages, None if answer is None else str(answer), place=row.place)


def _testbed_set(spec: PromptSpec, weights: str | Path) -> PromptSet:
    prompts = stored_language(weights).prompts(spec.split, spec.source.removeprefix(TESTBED))[: spec.limit]
    examples = [Example(str(n), prompt.conversation, truth=prompt) for n, prompt in enumerate(prompts, start=1)]
    return PromptSet(spec.name, prompts[0].harmful, examples)


def _hub_rows(spec: PromptSpec) -> list[PromptRecord]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError('`prompts` from the Hub need datasets. Install it: pip install "hf-alignbeam[datasets]"') from error
    options = {"split": spec.split, "revision": spec.revision, **(spec.options or {})}
    rows = load_dataset(spec.source.removeprefix(HUB), spec.config, **options)
    return [PromptRecord(f"Row {number} of {spec.source}", dict(row)) for number, row in enumerate(rows, start=1)]


def _layout(spec: PromptSpec, fields: Fields) -> Layout:
    """The layout of rows with these fields; what the recipe names takes precedence."""
    known = next((layout for layout in LAYOUTS.values() if layout.columns <= set(fields)), None)
    if known is None and spec.prompt is None:
        raise ValueError(
            f"`prompts` must be in a known layout ({', '.join(LAYOUTS)}), got the columns {', '.join(map(str, fields))} from "
            f"{spec.source}. Name the columns with `prompt`, `answer` and `harmful`."
        )
    harmful = spec.harmful
    if isinstance(harmful, Mapping):
        column, values = harmful["column"], [str(value).lower() for value in harmful["values"]]
        is_harmful: Callable[[Fields], bool] = lambda row: str(row[column]).lower() in values  # noqa: E731
    elif harmful is not None:
        is_harmful = lambda row: bool(harmful)  # noqa: E731
    else:
        is_harmful = known.harmful if known is not None else lambda row: parse_bool(row["harmful"])
    return Layout(
        frozenset(),
        _column(spec.prompt) if spec.prompt is not None or known is None else known.prompt,
        is_harmful,
        _column(spec.answer) if spec.answer is not None or known is None else known.answer,
    )


def _is_unsafe(label: Any) -> bool:
    if label not in ("safe", "unsafe"):
        raise ValueError(f"the label {label!r} where it must be safe or unsafe")
    return bool(label == "unsafe")


def _column(name: str | None) -> Callable[[Fields], Any]:
    """A function that reads a column by its name, or fills a format string with several."""
    if name is None:
        return lambda row: None
    return (lambda row: name.format(**row)) if "{" in name else (lambda row: row[name])
