"""Prompts to be answered, from files in their published layouts, the Hub or the testbed.

Knows layouts: which column is the prompt, which says harm, which is the right answer. Knows no model and no score.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_alignbeam.chat.conversations import Message, as_messages
from hf_alignbeam.evaluation.recipe import TESTBED, PromptSpec
from hf_alignbeam.testbed.language import Prompt
from hf_alignbeam.testbed.model_store import WEIGHTS, stored_language

HUB = "hub:"
#: The columns of the OpenAI moderation set that say which sort of harm a text is; of some texts some are not known.
MODERATION_FLAGS = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")

TableRow = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One prompt to be answered.

    Attributes:
        id: What tells it from the others of its set.
        conversation: What is asked.
        answer: The right answer, where one is known.
        truth: What the testbed's grammar knows of it.
    """

    id: str
    conversation: list[Message]
    answer: str | None = None
    truth: Prompt | None = None


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one sort: all of them ask for harm, or none does."""

    name: str
    harmful: bool
    cases: list[Case]


@dataclass(frozen=True)
class Layout:
    """How a published file is read; it is told by its columns."""

    columns: frozenset[str]
    prompt: Callable[[TableRow], Any]
    harmful: Callable[[TableRow], bool]
    answer: Callable[[TableRow], Any] = lambda row: None


LAYOUTS = {
    "AdvBench": Layout(frozenset({"goal", "target"}), lambda row: row["goal"], lambda row: True),
    "HarmBench": Layout(
        frozenset({"Behavior", "FunctionalCategory"}),
        lambda row: f"{row['ContextString']}\n\n---\n\n{row['Behavior']}" if row.get("ContextString") else row["Behavior"],
        lambda row: True,
    ),
    "XSTest": Layout(frozenset({"prompt", "label", "focus"}), lambda row: row["prompt"], lambda row: row["label"] == "unsafe"),
    "GSM8K": Layout(frozenset({"question", "answer"}), lambda row: row["question"], lambda row: False, lambda row: row["answer"]),
    "OpenAI moderation": Layout(
        frozenset({"prompt", "HR", "SH"}),
        lambda row: row["prompt"],
        lambda row: any(_truth(row.get(f) or 0) for f in MODERATION_FLAGS),
    ),
    "conversations": Layout(
        frozenset({"messages"}), lambda row: row["messages"], lambda row: _truth(row["harmful"]), lambda row: row.get("answer")
    ),
    "prompts": Layout(
        frozenset({"prompt"}), lambda row: row["prompt"], lambda row: _truth(row["harmful"]), lambda row: row.get("answer")
    ),
}


def load_prompts(spec: PromptSpec, weights: str | Path | None = None) -> list[PromptSet]:
    """The prompts that are meant, harmful and harmless ones apart.

    Args:
        spec: Where they are and how they are read.
        weights: The folder of the testbed's weights.

    Raises:
        OSError: The file cannot be read.
        ValueError: The layout is unknown, a row does not fit it, or nothing is left.
    """
    if spec.source.startswith(TESTBED):
        return [_testbed(spec, weights or WEIGHTS)]
    rows = _hub(spec) if spec.source.startswith(HUB) else list(_file(Path(spec.source)))
    rows = [row for row in rows if all(str(row.get(key)) == str(value) for key, value in (spec.where or {}).items())]
    if not rows:
        raise ValueError(f"`prompts` must hold at least one row, got none from {spec.source} where {dict(spec.where or {})}.")
    layout = _layout(spec, rows[0])
    cases: dict[bool, list[Case]] = {True: [], False: []}
    for number, row in enumerate(rows, start=1):
        try:
            harmful, asked, answer = layout.harmful(row), layout.prompt(row), layout.answer(row)
            messages = as_messages(json.loads(asked) if isinstance(asked, str) and asked.startswith('[{"') else asked)
            if not any(message["role"] == "user" for message in messages):
                raise ValueError("no question by a user")
            case = Case(str(number), messages, None if answer is None else str(answer))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            missing = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"Row {number} of {spec.source} must have a prompt and say whether it asks for harm, but has {missing}. Name the "
                "columns with `prompt`, `answer` and `harmful`."
            ) from error
        cases[harmful].append(case)
    both = all(cases.values())
    return [
        PromptSet(spec.name + (f" {'harmful' if harmful else 'harmless'}" if both else ""), harmful, found[: spec.limit])
        for harmful, found in cases.items()
        if found
    ]


def _testbed(spec: PromptSpec, weights: str | Path) -> PromptSet:
    prompts = stored_language(weights).prompts(spec.split, spec.source.removeprefix(TESTBED))[: spec.limit]
    cases = [Case(str(n), prompt.conversation, truth=prompt) for n, prompt in enumerate(prompts, start=1)]
    return PromptSet(spec.name, prompts[0].harmful, cases)


def _hub(spec: PromptSpec) -> list[TableRow]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError('`prompts` from the Hub need datasets. Install it: pip install "hf-alignbeam[datasets]"') from error
    options = {"split": spec.split, "revision": spec.revision, **(spec.options or {})}
    found = load_dataset(spec.source.removeprefix(HUB), spec.config, **options)
    return [dict(row) for row in found]


def _file(path: Path) -> Iterable[TableRow]:
    """The rows of a CSV, JSONL or text file, compressed or not; of the last, one prompt a line."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if path.suffix.lower() == ".gz" else data).decode("utf-8-sig")
        if suffixes[-1:] in ([".csv"], [".tsv"]):
            return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="," if suffixes[-1] == ".csv" else "\t"))
    except (EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} must be text in UTF-8, or a table of it, whole: {error}.") from error
    lines = [line for line in text.split("\n") if line.strip()]
    if suffixes[-1:] not in ([".jsonl"], [".json"]):
        return [{"prompt": line.strip()} for line in lines]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"Line {number} of {path} must be a JSON object, got {line[:80]!r}: {error}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"Line {number} of {path} must be a JSON object, got {line[:80]!r}.")
        rows.append(row)
    return rows


def _layout(spec: PromptSpec, row: TableRow) -> Layout:
    """The layout that a row has, with what the recipe says otherwise."""
    found = next((layout for layout in LAYOUTS.values() if layout.columns <= set(row)), None)
    if found is None and spec.prompt is None:
        raise ValueError(
            f"`prompts` must be in a known layout ({', '.join(LAYOUTS)}), got the columns {', '.join(map(str, row))} from "
            f"{spec.source}. Name the columns with `prompt`, `answer` and `harmful`."
        )
    harmful = spec.harmful
    if isinstance(harmful, Mapping):
        column, values = harmful["column"], [str(value).lower() for value in harmful["values"]]
        says_harm: Callable[[TableRow], bool] = lambda row: str(row[column]).lower() in values  # noqa: E731
    elif harmful is not None:
        says_harm = lambda row: bool(harmful)  # noqa: E731
    else:
        says_harm = found.harmful if found is not None else lambda row: _truth(row["harmful"])
    return Layout(
        frozenset(),
        _column(spec.prompt) if spec.prompt is not None or found is None else found.prompt,
        says_harm,
        _column(spec.answer) if spec.answer is not None or found is None else found.answer,
    )


def _truth(said: Any) -> bool:
    """What a cell says of harm."""
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if (word := str(said).strip().lower().removesuffix(".0")) not in known:
        raise ValueError(f"{said!r} where it must be true or false")
    return known[word]


def _column(named: str | None) -> Callable[[TableRow], Any]:
    """What reads a column, or several in a format string."""
    if named is None:
        return lambda row: None
    return (lambda row: named.format(**row)) if "{" in named else (lambda row: row[named])
